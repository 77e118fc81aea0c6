"""When training slows down, stops, and which epoch it keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.faces.transfer import send
from pipeline_steps.io.checkpoint import Checkpoints
from pipeline_steps.recognition.backbones import to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.seeds import seed_for, torch_generator

ROUNDING = 1e-9  # equal accuracies may differ by the rounding of an average over folds


@dataclass(frozen=True)
class Epoch:
    """One row of the history; `accuracy` is None where the epoch was not validated."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float | None
    best: bool


@dataclass(frozen=True)
class Schedule:
    """When training slows down and stops.

    Attributes:
        kind: plateau (the learning rate drops when validation stops improving, and training stops
            when it does so for longer) or step (it drops after fixed epochs; all are trained).
        epochs: largest number of epochs.
        factor: factor by which the learning rate drops.
        plateau_patience: validated epochs without a new best before it drops.
        stop_patience: validated epochs without a new best after which training stops.
        milestones: epochs after which it drops; only with step.
        first_validated_epoch: epochs before it are not validated; the last one always is.
    """

    kind: Literal["plateau", "step"] = "plateau"
    epochs: int = 200
    factor: float = 0.1
    plateau_patience: int = 4
    stop_patience: int = 6
    milestones: tuple[int, ...] = ()
    first_validated_epoch: int = 1

    def validates(self, epoch: int) -> bool:
        """Whether this epoch (from 1) is validated."""
        return epoch >= self.first_validated_epoch or epoch >= self.epochs


@dataclass
class Progress:
    """What a schedule has seen so far.

    Attributes:
        history: finished epochs.
        best_accuracy: of the epochs validated so far; None before the first.
        since_best: validated epochs since then.
    """

    history: list[Epoch] = field(default_factory=list)
    best_accuracy: float | None = None
    since_best: int = 0

    def add(self, epoch: Epoch) -> bool:
        """Note a finished epoch, whose `best` is decided here; True where it is a new best."""
        best = epoch.accuracy is not None and (
            self.best_accuracy is None or epoch.accuracy > self.best_accuracy + ROUNDING
        )
        if best:
            self.best_accuracy, self.since_best = epoch.accuracy, 0
        elif epoch.accuracy is not None:
            self.since_best += 1
        self.history.append(
            Epoch(epoch.epoch, epoch.learning_rate, epoch.loss, epoch.accuracy, best)
        )
        return best

    def ends(self, schedule: Schedule) -> bool:
        """Whether training is over after the last epoch."""
        if not self.history:
            return False
        stops = schedule.kind == "plateau" and self.since_best >= schedule.stop_patience
        return stops or self.history[-1].epoch >= schedule.epochs

    def drops(self, schedule: Schedule) -> bool:
        """Whether the learning rate drops after the last epoch."""
        last = self.history[-1]
        if schedule.kind == "step":
            return last.epoch in schedule.milestones
        waited = self.since_best and self.since_best % (schedule.plateau_patience + 1) == 0
        return last.accuracy is not None and bool(waited)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; floats survive exactly."""
        return {
            "history": [list(vars(epoch).values()) for epoch in self.history],
            "best_accuracy": self.best_accuracy,
            "since_best": self.since_best,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Progress:
        """What `to_json` gave."""
        history = [Epoch(*row) for row in value["history"]]
        return Progress(history, value["best_accuracy"], int(value["since_best"]))


REFERENCE_BATCH = 512
SAVE_EVERY = 300.0  # seconds at most between two saved states, also within an epoch
DEVICE_SHARE = 0.5  # of a card's free memory that decoded images may take

# uint8 [n, 112, 112, 3] and a CPU generator -> the same shape, augmented.
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; defaults are the paper's.

    Attributes:
        schedule: when the learning rate drops and training ends.
        input_size: side of the network's input, pixels.
        batch_size: images per step; the remainder of an epoch is dropped.
        learning_rate_per_512: learning rate at batch size 512.
        momentum, weight_decay: of SGD.
        clip_norm: largest norm of the backbone's gradient.
        flip: mirror every image with probability one half.
        augment: further augmentation.
        bfloat16: autocast of the backbone.
    """

    schedule: Schedule = field(default_factory=Schedule)
    input_size: int = 112
    batch_size: int = 128
    learning_rate_per_512: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 5.0
    flip: bool = True
    augment: Augmentation | None = None
    bfloat16: bool = False


def train(
    network: nn.Module,  # backbone on its device; left with the weights of the best epoch
    head: MarginHead,  # on the same device
    images: np.ndarray,  # uint8 [n, 112, 112, 3], RGB
    labels: np.ndarray,  # int64 [n]
    recipe: Recipe,
    *,
    validate: Callable[[nn.Module], float],  # accuracy in [0, 1]
    seed: int,  # of the images' order, flips, augmentation and dropout
    checkpoints: Checkpoints | None = None,  # None: start anew, keep nothing
    stop: Callable[[], object] = lambda: None,  # true: save, and raise Interrupted
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train until the schedule ends and restore the best validated epoch.

    Dropout draws from torch's global generators, which are seeded anew in every step; fork them.

    Returns:
        the history, one entry per epoch.

    Raises:
        ValueError: images and labels that do not fit, or too few images.
        FloatingPointError: the loss is no longer finite.
        Interrupted: a stop was asked for; the state is saved where checkpoints are kept.
    """
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(f"expected 2 images or more, a label each: {len(images)}, {len(labels)}")
    training = Training(network, head, recipe, batch_size=min(recipe.batch_size, len(images)))
    if checkpoints is not None:
        training.resume(checkpoints)
    device = next(network.parameters()).device
    pixels = _near(torch.from_numpy(images), device)
    classes = torch.from_numpy(labels.astype(np.int64)).to(device)
    while not training.progress.ends(recipe.schedule):
        training.run_epoch(pixels, classes, seed, checkpoints, stop)
        on_epoch(training.finish_epoch(validate))
        if checkpoints is not None:
            training.save(checkpoints)
    network.load_state_dict(training.best)
    network.eval()
    return training.progress.history


class Training:
    """A training between two steps: networks, optimiser, and how far it is."""

    def __init__(
        self, network: nn.Module, head: MarginHead, recipe: Recipe, batch_size: int
    ) -> None:
        self.network, self.head, self.recipe = network, head, recipe
        self.batch_size = batch_size
        parameters = [*network.parameters(), *head.parameters()]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters,
            lr=recipe.learning_rate_per_512 / REFERENCE_BATCH * batch_size,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.progress = Progress()
        self.best = _copy(network.state_dict())
        self.step = 0  # steps done of the epoch that runs
        self.saved_at = time.monotonic()
        self.loss_sum = torch.zeros((), device=self.parameters[0].device)

    @property
    def learning_rate(self) -> float:
        """The present one."""
        return float(self.optimiser.param_groups[0]["lr"])

    def run_epoch(
        self,
        pixels: Tensor,
        classes: Tensor,
        seed: int,
        checkpoints: Checkpoints | None,
        stop: Callable[[], object],
    ) -> None:
        """The rest of the epoch that is under way: images [n, h, w, 3], classes [n]."""
        self.network.train()
        self.head.train()
        epoch = len(self.progress.history) + 1
        draws = torch_generator(seed, "epoch", epoch)
        n_steps = len(pixels) // self.batch_size
        # Drop-last: a remainder of one image would break batch normalisation.
        order = torch.randperm(len(pixels), generator=draws)[: n_steps * self.batch_size]
        mirrored = torch.rand(len(order), generator=draws) < 0.5
        rows_of = order.to(pixels.device).split(self.batch_size)
        classes_of = classes[order.to(classes.device)].split(self.batch_size)
        mirrored_of = mirrored.to(classes.device).split(self.batch_size)
        for step in range(self.step, n_steps):
            torch.manual_seed(seed_for(seed, "dropout", epoch, step))
            batch = send(pixels[rows_of[step]], classes.device)
            if self.recipe.augment is not None:
                batch = self.recipe.augment(batch, torch_generator(seed, "augment", epoch, step))
            x = to_input(batch, self.recipe.input_size)
            if self.recipe.flip:
                x = torch.where(mirrored_of[step][:, None, None, None], x.flip(3), x)
            self._learn(x, classes_of[step])
            self.step = step + 1
            asked = stop()
            overdue = time.monotonic() - self.saved_at > SAVE_EVERY
            if checkpoints is not None and (asked or overdue):
                self.save(checkpoints)
            if asked:
                raise Interrupted(f"epoch {epoch}, step {self.step} of {n_steps}")

    def _learn(self, x: Tensor, classes: Tensor) -> None:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            embeddings = self.network(x)
        loss = functional.cross_entropy(self.head(embeddings, classes), classes)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        self.loss_sum += loss.detach()

    def finish_epoch(self, validate: Callable[[nn.Module], float]) -> Epoch:
        """Validate, keep the weights of a new best, set the learning rate of the next epoch."""
        number = len(self.progress.history) + 1
        loss = float(self.loss_sum) / max(1, self.step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {number}")
        schedule = self.recipe.schedule
        accuracy = validate(self.network) if schedule.validates(number) else None
        epoch = Epoch(number, self.learning_rate, loss, accuracy, best=False)
        if self.progress.add(epoch):
            self.best = _copy(self.network.state_dict())
        if self.progress.drops(schedule):
            for group in self.optimiser.param_groups:
                group["lr"] *= schedule.factor
        self.step = 0
        self.loss_sum.zero_()
        return self.progress.history[-1]

    def save(self, checkpoints: Checkpoints) -> None:
        """Write all that the next step depends on."""
        momentum = [self.optimiser.state[p].get("momentum_buffer") for p in self.parameters]
        tensors = {
            **_prefixed("network", self.network.state_dict()),
            **_prefixed("head", self.head.state_dict()),
            **_prefixed("best", self.best),
            **{f"momentum/{i}": m for i, m in enumerate(momentum) if m is not None},
            "loss_sum": self.loss_sum,
        }
        values = {
            "progress": self.progress.to_json(),
            "learning_rate": self.learning_rate,
            "step": self.step,
        }
        checkpoints.save(tensors, values)
        self.saved_at = time.monotonic()

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the saved state, where there is one."""
        saved = checkpoints.load()
        if saved is None:
            return
        tensors, values = saved
        self.network.load_state_dict(_below("network", tensors))
        self.head.load_state_dict(_below("head", tensors))
        self.best = {
            key: _below("best", tensors)[key].to(value.device) for key, value in self.best.items()
        }
        for i, parameter in enumerate(self.parameters):
            if f"momentum/{i}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum/{i}"])
                self.optimiser.state[parameter]["momentum_buffer"] = buffer
        for group in self.optimiser.param_groups:
            group["lr"] = values["learning_rate"]
        self.loss_sum.copy_(tensors["loss_sum"])
        self.step = int(values["step"])
        self.progress = Progress.from_json(values["progress"])


def _near(images: Tensor, device: torch.device) -> Tensor:
    """Decoded images on the device where they fit there, else pinned for quick copies."""
    if device.type != "cuda":
        return images
    free = torch.cuda.mem_get_info(device)[0]
    return images.to(device) if images.nbytes < DEVICE_SHARE * free else images.pin_memory()


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{key}": value for key, value in state.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}
