"""Training a recogniser with a margin loss.

The paper's Table 3: SGD on CosFace, learning rate linear in the batch size, horizontal flips,
clipped gradients, the learning rate lowered when a validation benchmark stops improving, early
stop, and the best epoch kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.recognition.inference import to_input
from pipeline_steps.recognition.margins import MarginHead

REFERENCE_BATCH = 512
ROUNDING = 1e-9  # equal accuracies may differ by the rounding of an average over folds

# uint8 [n, 112, 112, 3] and a CPU generator -> the same shape, augmented.
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


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
        epochs: largest number of epochs.
        plateau_patience: validated epochs without a new best before the learning rate drops.
        plateau_factor: factor by which it drops.
        stop_patience: validated epochs without a new best after which training stops.
        first_validated_epoch: epochs before it are not validated.
    """

    epochs: int = 200
    plateau_patience: int = 4
    plateau_factor: float = 0.1
    stop_patience: int = 6
    first_validated_epoch: int = 1


def train(
    network: nn.Module,  # backbone on its device; left with the weights of the best epoch
    head: MarginHead,  # on the same device
    images: np.ndarray,  # uint8 [n, 112, 112, 3], RGB
    labels: np.ndarray,  # int64 [n]
    *,
    validate: Callable[[nn.Module], float],  # accuracy in [0, 1]
    generator: torch.Generator,  # CPU: order of images, flips, augmentation
    schedule: Schedule = Schedule(),
    input_size: int = 112,  # pixels
    batch_size: int = 128,
    learning_rate_per_512: float = 0.1,  # at batch size 512
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip_norm: float = 5.0,  # of the backbone's gradient
    flip: bool = True,
    augment: Augmentation | None = None,
    bfloat16: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train until the schedule ends and restore the best validated epoch.

    Dropout draws from torch's global generator; fork and seed it for reproducible results.

    Returns:
        the history, one entry per epoch.

    Raises:
        ValueError: images and labels that do not fit, or too few images.
        FloatingPointError: the loss is no longer finite.
    """
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(f"expected 2 images or more, a label each: {len(images)}, {len(labels)}")
    device = next(network.parameters()).device
    all_labels = torch.from_numpy(labels.astype(np.int64))
    batch_size = min(batch_size, len(images))
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=learning_rate_per_512 / REFERENCE_BATCH * batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    history: list[Epoch] = []
    best_accuracy, best_state, since_best = -math.inf, _copy_state(network), 0
    for number in range(1, schedule.epochs + 1):
        network.train()
        losses: list[Tensor] = []
        order = torch.randperm(len(images), generator=generator)
        # Drop-last: a remainder of one image would break batch normalisation.
        for rows in order[: len(images) // batch_size * batch_size].split(batch_size):
            batch = torch.from_numpy(images[rows.numpy()])
            if augment is not None:
                batch = augment(batch, generator)
            x = to_input(batch.to(device), input_size)
            if flip:
                x = _flip_some(x, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                embeddings = network(x)
            own = all_labels[rows].to(device)
            loss = functional.cross_entropy(head(embeddings, own), own)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimiser.step()
            losses.append(loss.detach())
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss is {mean_loss} in epoch {number}")

        learning_rate = float(optimiser.param_groups[0]["lr"])
        if number < schedule.first_validated_epoch and number < schedule.epochs:
            history.append(Epoch(number, learning_rate, mean_loss, None, best=False))
            on_epoch(history[-1])
            continue
        accuracy = validate(network)
        improved = accuracy > best_accuracy + ROUNDING
        if improved:
            best_accuracy, best_state, since_best = accuracy, _copy_state(network), 0
        else:
            since_best += 1
        history.append(Epoch(number, learning_rate, mean_loss, accuracy, improved))
        on_epoch(history[-1])
        if since_best >= schedule.stop_patience:
            break
        if since_best and since_best % (schedule.plateau_patience + 1) == 0:
            for group in optimiser.param_groups:
                group["lr"] *= schedule.plateau_factor
    network.load_state_dict(best_state)
    network.eval()
    return history


def _flip_some(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [n, 3, h, w] with probability one half."""
    chosen = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(chosen.to(x.device)[:, None, None, None], x.flip(3), x)


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}
