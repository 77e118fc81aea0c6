"""Training a recogniser with a margin loss.

The paper's Table 3: SGD on CosFace, learning rate linear in the batch size, horizontal flips,
clipped gradients, the learning rate lowered when a validation benchmark stops improving, early
stop, and the best epoch kept. What the settings say is written at `RecogniseSettings`.

Every random number is keyed by its epoch and step, so training goes on from any step as if it had
never stopped. Images lie decoded on the device, and nothing in an epoch waits for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.io.tensors import send
from pipeline_steps.recognition.backbones import to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.seeds import seed_for, torch_generator
from pipeline_steps.study.settings.recognition import RecogniseSettings

REFERENCE_BATCH = 512
SAVE_EVERY = 300.0  # seconds at most between two saved states, also within an epoch
DEVICE_SHARE = 0.5  # of a card's free memory that decoded images may take
# uint8 [n, 112, 112, 3] and a CPU generator -> the same shape, augmented.
Augmentation = Callable[[Tensor, torch.Generator], Tensor]
ROUNDING = 1e-9  # equal accuracies may differ by the rounding of an average over folds


@dataclass(frozen=True)
class Epoch:
    """One row of the history; `accuracy` is None where the epoch was not validated."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float | None
    best: bool = False


@dataclass
class Progress:
    """What has been trained so far, and what follows from it.

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
        self.history.append(replace(epoch, best=best))
        return best

    def ends(self, settings: RecogniseSettings) -> bool:
        """Whether training is over after the last epoch."""
        if not self.history:
            return False
        stops = settings.schedule == "plateau" and self.since_best >= settings.stop_patience
        return stops or self.history[-1].epoch >= settings.epochs

    def drops(self, settings: RecogniseSettings) -> bool:
        """Whether the learning rate drops after the last epoch."""
        last = self.history[-1]
        if settings.schedule == "step":
            return last.epoch in settings.milestones
        waited = self.since_best and self.since_best % (settings.plateau_patience + 1) == 0
        return last.accuracy is not None and bool(waited)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; floats survive exactly."""
        return {**vars(self), "history": [astuple(epoch) for epoch in self.history]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Progress:
        """What `to_json` gave."""
        return Progress(**{**value, "history": [Epoch(*row) for row in value["history"]]})


def train(
    network: nn.Module,  # backbone on its device; left with the weights of the best epoch
    head: MarginHead,  # on the same device
    images: np.ndarray,  # uint8 [n, 112, 112, 3], RGB
    labels: np.ndarray,  # int64 [n]
    settings: RecogniseSettings,
    *,
    validate: Callable[[nn.Module], float],  # accuracy in [0, 1]
    seed: int,  # of the images' order, flips, augmentation and dropout
    checkpoint: Checkpoint | None = None,  # None: start anew, keep nothing
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
        Interrupted: a stop was asked for; the state is saved where it is kept.
    """
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(f"expected 2 images or more, a label each: {len(images)}, {len(labels)}")
    training = Training(network, head, settings, batch_size=min(settings.batch_size, len(images)))
    if checkpoint is not None:
        training.resume(checkpoint)
    device = next(network.parameters()).device
    pixels = _near(torch.from_numpy(images), device)
    classes = torch.from_numpy(labels.astype(np.int64)).to(device)
    while not training.progress.ends(settings):
        training.run_epoch(pixels, classes, seed, checkpoint, stop)
        on_epoch(training.finish_epoch(validate))
        if checkpoint is not None:
            training.save(checkpoint)
    network.load_state_dict(training.best)
    network.eval()
    return training.progress.history


class Training:
    """A training between two steps: networks, optimiser, and how far it is."""

    def __init__(
        self, network: nn.Module, head: MarginHead, settings: RecogniseSettings, batch_size: int
    ) -> None:
        self.network, self.head, self.settings = network, head, settings
        self.augment = _augmentation(settings)
        self.batch_size = batch_size
        parameters = [*network.parameters(), *head.parameters()]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters,
            lr=settings.learning_rate_per_512 / REFERENCE_BATCH * batch_size,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
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
        checkpoint: Checkpoint | None,
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
            if self.augment is not None:
                batch = self.augment(batch, torch_generator(seed, "augment", epoch, step))
            x = to_input(batch, self.settings.input_size)
            if self.settings.flip:
                x = torch.where(mirrored_of[step][:, None, None, None], x.flip(3), x)
            self._learn(x, classes_of[step])
            self.step = step + 1
            asked = stop()
            overdue = time.monotonic() - self.saved_at > SAVE_EVERY
            if checkpoint is not None and (asked or overdue):
                self.save(checkpoint)
            if asked:
                raise Interrupted(f"epoch {epoch}, step {self.step} of {n_steps}")

    def _learn(self, x: Tensor, classes: Tensor) -> None:
        x = x.contiguous(memory_format=torch.channels_last)
        half = self.settings.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            embeddings = self.network(x)
        loss = functional.cross_entropy(self.head(embeddings, classes), classes)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        self.loss_sum += loss.detach()

    def finish_epoch(self, validate: Callable[[nn.Module], float]) -> Epoch:
        """Validate, keep the weights of a new best, set the learning rate of the next epoch."""
        number = len(self.progress.history) + 1
        loss = float(self.loss_sum) / max(1, self.step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {number}")
        validated = number >= min(self.settings.first_validated_epoch, self.settings.epochs)
        accuracy = validate(self.network) if validated else None
        if self.progress.add(Epoch(number, self.learning_rate, loss, accuracy)):
            self.best = _copy(self.network.state_dict())
        if self.progress.drops(self.settings):
            for group in self.optimiser.param_groups:
                group["lr"] *= self.settings.plateau_factor
        self.step = 0
        self.loss_sum.zero_()
        return self.progress.history[-1]

    def save(self, checkpoint: Checkpoint) -> None:
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
        checkpoint.save(tensors, values)
        self.saved_at = time.monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the saved state, where there is one."""
        saved = checkpoint.load()
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


def _augmentation(settings: RecogniseSettings) -> Augmentation | None:
    if settings.augmentation == "none":
        return None
    from pipeline_steps.recognition.augmentation import randaugment  # imports torchvision

    return randaugment(settings.randaugment_operations, settings.randaugment_magnitude)


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
