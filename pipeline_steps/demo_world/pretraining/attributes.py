"""Training of the embedded attribute network: it reads what the renderer knows but who it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.demo_world.pretraining.autoencoder import CHUNK, to_batch
from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.faces.extractors import AttributeNet

CLASSES = {"place": len(PLACES), "expression": len(EXPRESSIONS), "male": 2}
# Heads of one number each, and what 1 of them stands for: age in [0, 1], degrees, and lightness of
# the skin's colour in [0, 1].
NUMBERS = {"age": 1.0, "yaw": 45.0, "pitch": 15.0, "roll": 10.0, "skin": 1.0}
MIRRORED = ("yaw", "roll")  # change their sign in a mirror
NUMBER_WEIGHT = 4.0
ZOOM_MARGIN = (10, 16)  # pixels cut off each side of 64, the upper limit excluded


def stage(
    model: AttributeNet,
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training from a network on, half of each batch zoomed onto the face as crops are.

    For the other arguments see `autoencoder.stage`; the columns are `pictures` and what CLASSES and
    NUMBERS name.
    """
    model = model.to(run.device).requires_grad_(True).train()
    pictures = torch.from_numpy(columns["pictures"]).to(run.device)
    truth = {n: torch.from_numpy(columns[n]).to(run.device) for n in (*CLASSES, *NUMBERS)}

    def loss(count: int, generator: torch.Generator) -> Tensor:
        at = torch.randint(len(pictures), (count,), generator=generator, device=run.device)
        x, mirrored = _augment(to_batch(pictures[at]), generator)
        with run.autocast():
            found = model(x)
        losses = [functional.cross_entropy(found[n].float(), truth[n][at]) for n in CLASSES]
        for name, unit in NUMBERS.items():
            wanted = truth[name][at] / unit
            if name in MIRRORED:
                wanted = torch.where(mirrored, -wanted, wanted)
            error = functional.smooth_l1_loss(found[name].float().squeeze(1), wanted, beta=0.1)
            losses.append(NUMBER_WEIGHT * error)
        return torch.stack(losses).sum()

    return Stage(
        name="attributes",
        seed=seed,
        networks=model,
        loss=loss,
        measure=lambda average: errors(average, unseen, run),
        amounts=amounts,
        warm_up=5_000,
        hold=100_000,
    )


def _augment(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror some of [n, 3, h, w], zoom the first half, vary contrast and brightness.

    Returns:
        the pictures, and which of them are mirrored, bool [n].
    """
    draws = torch.rand((4, len(x)), generator=generator, device=x.device)
    mirrored = draws[0] < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    half = len(x) // 2
    low, high = ZOOM_MARGIN
    margin = low + int(draws[1, 0] * (high - low))
    zoomed = functional.interpolate(
        x[:half, :, margin:-margin, margin:-margin], size=x.shape[-1], mode="bilinear"
    )
    gain, bias = 0.9 + 0.2 * draws[2], 0.1 * draws[3] - 0.05
    scaled = torch.cat([zoomed, x[half:]]) * gain[:, None, None, None]
    return scaled + bias[:, None, None, None], mirrored


@torch.no_grad()
def errors(network: nn.Module, columns: Mapping[str, np.ndarray], run: Run) -> dict[str, float]:
    """What an AttributeNet in evaluation mode reads, against the truth.

    Returns:
        the share read rightly of each of CLASSES, and the mean error of each of NUMBERS in its own
        unit.
    """
    parts = []
    for first in range(0, len(columns["pictures"]), CHUNK):
        x = to_batch(torch.from_numpy(columns["pictures"][first : first + CHUNK]).to(run.device))
        with run.autocast():
            parts.append(network(x))
    found = {n: torch.cat([p[n].float() for p in parts]).cpu().numpy() for n in parts[0]}
    right = {n: float((found[n].argmax(1) == columns[n]).mean()) for n in CLASSES}
    return right | {
        n: float(np.abs(found[n][:, 0] * unit - columns[n]).mean()) for n, unit in NUMBERS.items()
    }
