"""Progress of a fleet in training: a bar, and now and then a line with the mean losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.runtime.logs import get_logger, progress

LINES = 10  # per fleet


class LossReport:
    """Called after each step; waits for the device only when it writes a line."""

    def __init__(self, method: str, identities: Sequence[str], steps: int) -> None:
        names = identities[0] + (f"..{identities[-1]}" if len(identities) > 1 else "")
        self._log = get_logger("finetune")
        self._bar = progress(range(0), description=f"{method} {names}", total=steps, unit="step")
        self._steps = steps
        self._every = max(1, steps // LINES)
        self._recent: list[Tensor] = []

    def __call__(self, fleet: Fleet, losses: Tensor) -> None:
        """Take the losses [K, 4] of the step that the fleet has just done."""
        done = fleet.step_number
        self._bar.update(done - self._bar.n)  # the first time, by what was done before
        self._recent.append(losses.mean(dim=0))
        if done % self._every == 0 or done == self._steps:
            mean = sum(self._recent[1:], self._recent[0]) / len(self._recent)
            instance, prior, identity, found = mean.tolist()
            self._log.info(
                "step %d/%d instance %.4f prior %.4f identity %.3f faces %.0f %%",
                done,
                self._steps,
                instance,
                prior,
                identity,
                100 * found,
            )
            self._recent = []
        if done == self._steps:
            self._bar.close()
