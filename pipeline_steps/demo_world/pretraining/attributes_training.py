"""Train the embedded attribute network: it reads place, expression and gender, and no identity."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from pipeline_steps.demo_world.pretraining.autoencoder_training import to_batch
from pipeline_steps.demo_world.pretraining.training_images import TrainingImages
from pipeline_steps.demo_world.rendering.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.faces.extractors import AttributeNet
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for

CLASSES = {"place": len(PLACES), "expression": len(EXPRESSIONS), "gender": 2}
ZOOM_MARGIN = (10, 16)  # pixels cut off each side of 64, the upper limit excluded


def train_attributes(
    images: np.ndarray,
    facts: TrainingImages,
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 3e-3,
) -> AttributeNet:
    """Train on photographs, half of each batch zoomed onto the face as aligned crops are.

    Args:
        images: uint8 [n, 64, 64, 3] RGB.
        facts: places, expressions and genders of the same n photographs.
        steps: optimiser steps; the learning rate falls along half a cosine.
        batch: images per step, at most n.
        seed: of weights, batches and augmentation.
        learning_rate: its peak, at the first step.

    Returns:
        The network in evaluation mode; gender 1 is male.
    """
    torch.manual_seed(seed_for(seed, "attributes"))
    model = AttributeNet(CLASSES).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    rng = numpy_generator(seed, "attributes batches")
    truth = {
        "place": np.asarray(facts.place),
        "expression": np.asarray(facts.expression),
        "gender": np.asarray(facts.male).astype(np.int64),
    }
    for _ in progress(range(steps), description="attributes", total=steps, unit="step"):
        index = rng.choice(len(images), batch, replace=False)
        logits = model(_augment(to_batch(images[index]), rng))
        losses = [
            functional.cross_entropy(logits[name], torch.from_numpy(truth[name][index]))
            for name in CLASSES
        ]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror the batch or not, zoom its first half, vary contrast and brightness."""
    if rng.random() < 0.5:
        x = x.flip(-1)
    half = len(x) // 2
    margin = int(rng.integers(*ZOOM_MARGIN))
    zoomed = functional.interpolate(
        x[:half, :, margin:-margin, margin:-margin], size=x.shape[-1], mode="bilinear"
    )
    x = torch.cat([zoomed, x[half:]])
    return x * float(rng.uniform(0.85, 1.15)) + float(rng.uniform(-0.1, 0.1))
