"""Train the embedded attribute network: it reads place, expression and gender, and knows no identity."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from pipeline_steps.demo_world.autoencoder_training import to_batch
from pipeline_steps.demo_world.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.training_images import TrainingImages
from pipeline_steps.faces.attributes import AttributeNet
from pipeline_steps.files.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for

CLASSES = {"place": len(PLACES), "expression": len(EXPRESSIONS), "gender": 2}


def train_attributes(
    images: np.ndarray,
    facts: TrainingImages,
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 3e-3,
) -> AttributeNet:
    """Train on uint8 [n, 64, 64, 3]; half of each batch is zoomed onto the face, as aligned crops are."""
    torch.manual_seed(seed_for(seed, "attributes"))
    model = AttributeNet(CLASSES).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    rng = numpy_generator(seed, "attributes batches")
    truth = {
        "place": np.asarray(facts.place), "expression": np.asarray(facts.expression),
        "gender": np.asarray(facts.male).astype(np.int64),
    }  # fmt: skip
    for _ in progress(range(steps), description="attributes", total=steps, unit="step"):
        index = rng.choice(len(images), batch, replace=False)
        x = to_batch(images[index])
        if rng.random() < 0.5:
            x = x.flip(-1)
        half = batch // 2
        margin = int(rng.integers(10, 16))
        zoomed = functional.interpolate(
            x[:half, :, margin:-margin, margin:-margin], size=64, mode="bilinear"
        )
        x = torch.cat([zoomed, x[half:]])
        x = x * float(rng.uniform(0.85, 1.15)) + float(rng.uniform(-0.1, 0.1))
        logits = model(x)
        loss = sum(
            functional.cross_entropy(logits[k], torch.from_numpy(truth[k][index])) for k in CLASSES
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
    return model.eval()
