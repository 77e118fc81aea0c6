"""The run of a fleet from where it is to its last step, safe against any interruption.

A checkpoint is written every few minutes, when somebody asks the process to stop, and at the last
step, so that the writing of results can be repeated without training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_steps.diffusion.training.checkpoints import Checkpoints
from pipeline_steps.diffusion.training.choice import Trials, split_state
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.diffusion.training.fleet_state import State, join_rows
from pipeline_steps.diffusion.training.loss_report import LossReport
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import StopRequest


@dataclass(frozen=True)
class FleetRun:
    """How fleets are run.

    Attributes:
        method: Name of the method, for the log.
        checkpoints: Where states are kept meanwhile.
        interval: Seconds between two checkpoints.
        stop: Whether somebody asked the process to stop.
        trials: Chooses the step that is kept; None: the last.
    """

    method: str
    checkpoints: Checkpoints
    interval: float
    stop: StopRequest
    trials: Trials | None = None

    def take_over(self, plan: FleetPlan) -> State | None:
        """The state that a planned fleet goes on from, its trials taken out and noted."""
        if plan.state is None:
            return None
        state, tried = split_state(plan.state)
        if self.trials is not None and tried is not None:
            self.trials.load_state(plan.identities, tried)
        return state

    def __call__(self, fleet: Fleet) -> None:
        """Step a fleet until it is finished.

        Raises:
            Interrupted: somebody asked to stop; the state is saved.
        """
        identities = list(fleet.subjects)
        report = LossReport(self.method, identities, fleet.settings.steps)
        saved_at = time.monotonic()
        if self.trials is not None and fleet.step_number == 0:
            self.trials(fleet)
        while not fleet.finished:
            report(fleet, fleet.step())
            if self.trials is not None:
                self.trials(fleet)
            due = time.monotonic() - saved_at >= self.interval
            if due or self.stop or fleet.finished:
                more = {} if self.trials is None else self.trials.state(identities)
                self.checkpoints.save(identities, {**fleet.state(), **more})
                saved_at = time.monotonic()
            if self.stop and not fleet.finished:
                raise Interrupted(
                    f"{self.stop.name}: {len(identities)} identities are saved at step "
                    f"{fleet.step_number} of {fleet.settings.steps}; run again to go on"
                )
        if self.trials is not None:
            self.trials.apply(fleet)


@dataclass(frozen=True)
class FleetPlan:
    """Identities to be trained together, and their state where they have one."""

    identities: list[str]
    state: State | None


def plan_fleets(
    identities: Sequence[str], checkpoints: Checkpoints, *, at_once: int, cohort: int
) -> list[FleetPlan]:
    """Who is trained together: identities of the same step, in their order, those furthest first.

    What remains of an interrupted cohort gets the same fleets as the whole cohort had, because
    float arithmetic depends in its last bits on how many train together.

    Args:
        identities: Those that are still to be trained.
        checkpoints: Their states.
        at_once: Most identities of a fleet.
        cohort: Number of identities to be trained before any was finished.
    """
    size = fleet_size(cohort, at_once) if len(identities) > at_once else at_once
    states = {identity: checkpoints.latest(identity) for identity in identities}
    by_step: dict[int, list[str]] = {}
    for identity, state in states.items():
        by_step.setdefault(0 if state is None else int(state["step"]), []).append(identity)
    plans = []
    for step, members in sorted(by_step.items(), reverse=True):
        if step:
            get_logger("finetune").info("%s: going on from step %d", ", ".join(members), step)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            known = [state for name in part if (state := states[name]) is not None]
            plans.append(FleetPlan(part, join_rows(known) if known else None))
    return plans


def fleet_size(count: int, most: int) -> int:
    """Size of fleets of at most ``most`` for ``count`` identities, as few and as equal as can be.

    All but the last have this size, so that the fleets after the first are those of the rest.
    """
    fleets = -(-count // most)
    return -(-count // max(1, fleets))
