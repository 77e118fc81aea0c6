"""Fine-tuning of many identities at once over one frozen denoising network.

Each step draws one batch per identity, runs the network once for all of them, and sums the losses
over identities: slice k of the stacked adapters gets identity k's gradient alone. Gradient clipping
and noise are per identity, so a fleet changes the speed and not the result. A fleet can be
interrupted after any step and go on from its state, in a fleet of another size if need be.

Source: ID-Booth, DreamBooth, PortraitBooth (see losses); LoRA, AdamW, cosine schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Runtime
from pipeline_steps.diffusion.guide import Guide
from pipeline_steps.diffusion.lora import Adapter, AdapterBank
from pipeline_steps.diffusion.training.data import LatentSet, Recipe, StepNoise, stack, step_noise
from pipeline_steps.diffusion.training.losses import LOSSES, FleetLoss
from pipeline_steps.diffusion.training.optimisers import open_optimiser
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import torch_generator

State = Mapping[str, Tensor]  # see Fleet.state


@dataclass(frozen=True)
class FineTuned:
    """Result of one identity.

    Attributes:
        adapter: Layer name to A [r, in] and B [out, r].
        losses: Name to one value per step; "identity" is unweighted, 0 without a face;
            "face_found" is the share of the step's instance samples with a face.
        finite: Whether every weight is a number. One identity's divergence touches no other.
    """

    adapter: Adapter
    losses: dict[str, list[float]]
    finite: bool


class Fleet(AbstractContextManager["Fleet"]):
    """K identities in training: their adapters over the base model's network, and the optimiser.

    Use it as a context manager: at its end the network is as before.

    Args:
        base: Frozen base model, whose network carries the adapters meanwhile.
        subjects: Identity to its images.
        prior: Prior preservation images.
        recipe: Method, settings and seed.
        guide: Needed by methods with an identity term.
        runtime: How it runs; changes no result beyond float error.

    Attributes:
        step_number: Steps done.
        sound: Whether the state is that of a whole number of steps; False after a failure within an
            optimiser's update.

    Raises:
        ValueError: the method needs a guide or embeddings that are not given.
    """

    def __init__(
        self,
        base: BaseModel,
        subjects: Mapping[str, LatentSet],
        prior: LatentSet,
        recipe: Recipe,
        guide: Guide | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.base, self.subjects, self.prior = base, dict(subjects), prior
        self.settings, self.seed = recipe.settings, recipe.seed
        self.step_number, self.sound = 0, True
        settings = recipe.settings
        runtime = runtime or Runtime()
        self.loss = FleetLoss(base, self.subjects, prior, recipe, guide, runtime)
        self.bank = AdapterBank(
            base.unet,
            count=len(self.subjects),
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
        )
        for k, identity in enumerate(self.subjects):
            stream = torch_generator(self.seed, "finetune", base.name, identity, "lora")
            self.bank.initialise(k, stream, settings.init)
        self._log = torch.zeros(settings.steps, len(self.subjects), len(LOSSES), device=base.device)
        self._optimiser = open_optimiser(self.bank.weights, settings)
        self._checkpointing = runtime.checkpointing
        if self._checkpointing:
            base.unet.enable_gradient_checkpointing()

    def __exit__(self, *_: object) -> None:
        if self._checkpointing:
            self.base.unet.disable_gradient_checkpointing()
        self.bank.remove()

    @property
    def finished(self) -> bool:
        return self.step_number >= self.settings.steps

    def step(self) -> Tensor:
        """One optimiser step of all identities.

        Returns:
            The step's losses, float [K, 4] in the order of ``LOSSES`` on the base model's device.

        Raises:
            ValueError: all steps are done.
        """
        if self.finished:
            raise ValueError(f"all {self.settings.steps} steps are done")
        step, settings = self.step_number, self.settings
        losses = self._backward(self.noise(step))
        clip_rows(self.bank.collect_gradients(), settings.clip_norm)
        rate = learning_rate(settings.learning_rate, settings.schedule, step, settings.steps)
        self.sound = False
        self._optimiser.update(rate)
        self._log[step] = losses
        self.step_number += 1
        self.sound = True
        return losses

    def noise(self, step: int) -> StepNoise:
        """All identities' noise of a step."""
        shared: dict[str, Any] = {
            "n_prior": len(self.prior),
            "batch_size": self.settings.batch_size,
            "latent_shape": self.base.latent_shape,
            "train_timesteps": self.base.train_timesteps,
        }
        return stack(
            [
                step_noise(self.seed, self.base.name, identity, step, n_instance=len(own), **shared)
                for identity, own in self.subjects.items()
            ]
        )

    def _backward(self, drawn: StepNoise) -> Tensor:
        """Leave the gradients with the bank's layers; without compiling, where that fails."""
        try:
            return self.loss.backward(drawn)
        except Exception as error:
            self.bank.drop_gradients()
            if isinstance(error, torch.OutOfMemoryError) or not self.loss.compiled:
                raise
            get_logger("finetune").warning("compiling failed, going on without: %s", error)
        self.loss.stop_compiling()
        return self.loss.backward(drawn)

    def state(self) -> dict[str, Tensor]:
        """Everything that the steps to come follow from, as copies on the CPU.

        Row k of each tensor is identity k, and rows may be taken to a fleet of other identities:
        ``weights`` float [K, P], the optimiser's moments (``exp_avg`` and ``exp_avg_sq``, [K, P],
        or their 8-bit codes and scales), ``losses`` float32 [K, steps done, 4], ``step`` int64 [K].
        Noise is keyed by identity and step and needs no state.
        """
        held = {
            "weights": self.bank.weights,
            "losses": self._log[: self.step_number].transpose(0, 1),
            "step": torch.full((len(self.bank),), self.step_number),
            **self._optimiser.moments(),
        }
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in held.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of the same identities, in the same order.

        Raises:
            ValueError: it is of other shapes, or its rows are of different steps.
        """
        done = _one_step([state])
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        moments = self._optimiser.moments()
        expected = {name: tuple(value.shape) for name, value in moments.items()} | {
            "weights": tuple(self.bank.weights.shape),
            "losses": (len(self.bank), done, len(LOSSES)),
            "step": (len(self.bank),),
        }
        if shapes != expected or done > self.settings.steps:
            raise ValueError(f"the state has shapes {shapes} at step {done}; expected {expected}")
        with torch.no_grad():
            self.bank.weights.copy_(state["weights"])
        self._optimiser.load({name: state[name] for name in moments}, done)
        self._log.zero_()
        self._log[:done] = state["losses"].transpose(0, 1).to(self._log)
        self.step_number = done

    def results(self) -> dict[str, FineTuned]:
        """Identity to what it has come to so far."""
        history = self._log[: self.step_number].cpu()
        finite = self.bank.weights.detach().isfinite().all(dim=1).cpu()
        return {
            identity: FineTuned(
                adapter=self.bank.adapter(k),
                losses={name: history[:, k, i].tolist() for i, name in enumerate(LOSSES)},
                finite=bool(finite[k]),
            )
            for k, identity in enumerate(self.subjects)
        }


def clip_rows(gradients: Tensor, largest: float) -> Tensor:
    """Scale each row of [K, P] to a norm of at most ``largest``, in place; returns the norms [K].

    What ``torch.nn.utils.clip_grad_norm_`` does for one identity, row by row.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1)
    gradients.mul_((largest / (norms + 1e-6)).clamp(max=1.0)[:, None])
    return norms


def learning_rate(peak: float, schedule: str, step: int, steps: int) -> float:
    """Learning rate of step 0 ... steps - 1; "cosine" falls from the peak to zero, no warm-up."""
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def take_rows(state: State, rows: Sequence[int]) -> dict[str, Tensor]:
    """The state of some of a fleet's identities, in the order of ``rows``."""
    index = torch.tensor(list(rows), dtype=torch.int64)
    return {name: value[index] for name, value in state.items()}


def join_rows(states: Sequence[State]) -> dict[str, Tensor]:
    """One state of the identities of several states, in their order.

    Raises:
        ValueError: the states are of different steps, or of networks of other sizes.
    """
    _one_step(states)
    if any(set(state) != set(states[0]) for state in states):
        raise ValueError("states with other contents cannot be joined")
    try:
        return {name: torch.cat([state[name] for state in states]) for name in sorted(states[0])}
    except RuntimeError as error:
        raise ValueError(f"states of other sizes cannot be joined: {error}") from error


def _one_step(states: Sequence[State]) -> int:
    steps = sorted({int(step) for state in states for step in state["step"]})
    if len(steps) != 1:
        raise ValueError(f"states of one step are expected, these are of {steps}")
    return steps[0]
