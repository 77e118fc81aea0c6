"""Training of one set of weights, once for a base model: steps, state, and going on after a stop.

What is trained and what its loss is, a method's own class says. Step s sees the same draws whatever
ran before it, so an interruption changes no result.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.training.fleet import learning_rate
from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings

LINES = 20  # of the log
MOMENTS = ("exp_avg", "exp_avg_sq")
PURPOSE = ("train_generator",)  # of random draws
Terms = Mapping[str, Tensor]


class WeightsTraining(ABC):
    """Weights in training.

    Args:
        base: Base model on its device.
        frozen: The step's configuration.
        trained: What is trained, by the names of the file.
        count: Images that are trained on.

    Attributes:
        file_name: Of the finished weights.
        losses: One value per step.
        terms: Values of each term of the loss without its factor, one per step.
    """

    file_name: ClassVar[str]

    def __init__(
        self,
        base: BaseModel,
        frozen: Frozen[GeneratorSettings],
        trained: Mapping[str, nn.Parameter],
        count: int,
    ) -> None:
        self.base, self.settings, self.seed = base, frozen.settings, frozen.seed
        self._trained, self._count = dict(trained), count
        self.losses: list[float] = []
        self.terms: dict[str, list[float]] = {}
        self._averages: dict[str, Tensor] = {}
        if self.settings.average is not None:
            self._averages = {name: p.detach().clone() for name, p in self._trained.items()}
        self._optimiser = torch.optim.AdamW(
            self._trained.values(),
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
            fused=base.device.type == "cuda",
        )

    @abstractmethod
    def loss(self, at: Sequence[int], stream: torch.Generator) -> tuple[Tensor, Terms]:
        """The loss on images, a scalar, and its terms without their factors, detached.

        Args:
            at: Places of the images.
            stream: CPU generator of all draws.
        """

    @property
    def step_number(self) -> int:
        """Steps done."""
        return len(self.losses)

    def step(self) -> None:
        """One optimiser step."""
        settings, step = self.settings, self.step_number
        rate = learning_rate(settings.learning_rate, settings.schedule, step, settings.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, settings.warm_up))
        stream = torch_generator(self.seed, *PURPOSE, self.base.name, step)
        at = torch.randint(self._count, (settings.batch_size,), generator=stream)
        loss, terms = self.loss(at.tolist(), stream)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._trained.values(), settings.clip_norm)
        self._optimiser.step()
        for name, average in self._averages.items():
            # the first steps' weights are soon forgotten
            past = min(settings.average or 0.0, (1 + step) / (10 + step))
            average.lerp_(self._trained[name].detach(), 1 - past)
        self.losses.append(float(loss.detach()))
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(float(value))

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, or their running averages."""
        return self._averages or {name: p.detach() for name, p in self._trained.items()}

    def beside(self) -> dict[str, Tensor]:
        """What stands beside the weights in their file."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything that the steps to come follow from."""
        state = {f"weights/{name}": p.detach() for name, p in self._trained.items()}
        state |= {f"average/{name}": tensor for name, tensor in self._averages.items()}
        for name, p in self._trained.items():
            for moment in MOMENTS if self.losses else ():
                state[f"{moment}/{name}"] = self._optimiser.state[p][moment]
        curves = {"losses": self.losses} | {f"terms/{n}": of for n, of in self.terms.items()}
        return state | {n: torch.tensor(of, dtype=torch.float64) for n, of in curves.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.losses = state["losses"].tolist()
        self.terms = {name: t.tolist() for name, t in _below(state, "terms").items()}
        where = self.base.device if self.base.device.type == "cuda" else "cpu"
        for name, tensor in _below(state, "average").items():
            self._averages[name].copy_(tensor)
        for name, p in self._trained.items():
            p.copy_(state[f"weights/{name}"])
            if self.losses:
                self._optimiser.state[p] = {
                    "step": torch.tensor(float(self.step_number), device=where),
                    **{of: state[f"{of}/{name}"].to(p, copy=True) for of in MOMENTS},
                }


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}/")
    }


def train(
    training: WeightsTraining, saved: Checkpoint, save_seconds: float, stop: StopRequest
) -> None:
    """Train from where the saved state is to the last step.

    Raises:
        Interrupted: somebody asked to stop; the state is saved.
        StepError: the loss is no number.
    """
    log, steps = get_logger("train_generator"), training.settings.steps
    if (found := saved.load()) is not None:
        training.load_state(found[0])
        log.info("going on from step %d", training.step_number)
    saved_at = time.monotonic()
    for _ in range(training.step_number, steps):
        training.step()
        done = training.step_number
        if not math.isfinite(training.losses[-1]):
            raise StepError(
                f"training diverged at step {done}: lower train_generator.learning_rate"
            )
        if done % max(1, steps // LINES) == 0 or done == steps:
            recent = training.losses[-max(1, steps // LINES) :]
            log.info("step %d/%d loss %.4f", done, steps, sum(recent) / len(recent))
        if time.monotonic() - saved_at >= save_seconds or stop or done == steps:
            saved.save(training.state())
            saved_at = time.monotonic()
        if stop and done < steps:
            raise Interrupted(f"{stop.name}: saved at step {done} of {steps}; run again to go on")
