"""Train the embedded autoencoder: reconstruction, sharpened by an edge term, and a light KL.

Source of the model and of the KL's role: Rombach et al., "High-Resolution Image Synthesis with
Latent Diffusion Models", CVPR 2022.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline_steps.demo_world.pretraining.architectures import autoencoder
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for, torch_generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

WARM_UP_STEPS = 100
LAST_RATE = 0.02  # of the peak learning rate, at the end of a cycle
EDGE_WEIGHT = 0.7
KL_WEIGHT = 2e-6
FIRST_LOG_VARIANCE = -5.0  # of the posterior, before training
MOMENT_SAMPLE = 512  # images from which the latents' variance is measured


def to_batch(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def halve(images: np.ndarray) -> np.ndarray:
    """Box-average uint8 images [n, 2h, 2w, 3] to [n, h, w, 3]."""
    n, h, w, c = images.shape
    mean = images.reshape(n, h // 2, 2, w // 2, 2, c).astype(np.uint16).sum((2, 4))
    return ((mean + 2) // 4).astype(np.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(-10 * torch.log10(functional.mse_loss(a.clamp(-1, 1), b) / 4))


def face_weight(size: int) -> torch.Tensor:
    """Weight [1, 1, size, size], mean 1: the middle, where the face stands, counts three times."""
    axis = torch.linspace(-1, 1, size)
    d = (axis[None, :] / 0.42) ** 2 + ((axis[:, None] - 0.05) / 0.55) ** 2
    weight = 1 + 2 * torch.exp(-(d**2))
    return (weight / weight.mean())[None, None]


def contrast_weight(x: torch.Tensor) -> torch.Tensor:
    """Weight [n, 1, h, w], mean 1 over the batch, that rises where pictures are dark.

    The features of dark skin, whose differences in pixel values are small, then count as much as
    those of light skin.

    Args:
        x: [n, 3, h, w] in [-1, 1].
    """
    light = functional.avg_pool2d(
        (x.mean(1, keepdim=True) + 1) / 2, 9, stride=1, padding=4, count_include_pad=False
    )
    weight = 1 / (0.12 + light)
    return weight / weight.mean()


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted L1 distance of pictures and of their edges, a scalar.

    Args:
        y: reconstruction [n, 3, h, w].
        x: original [n, 3, h, w] in [-1, 1].
        weight: of the places, [1, 1, h, w].
    """
    w = weight * contrast_weight(x)
    across, down = _edges(y - x)
    loss = (w * (y - x).abs()).mean()
    loss = loss + EDGE_WEIGHT * (w[..., 1:] * across.abs()).mean()
    return loss + EDGE_WEIGHT * (w[..., 1:, :] * down.abs()).mean()


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, then half a cosine down to LAST_RATE."""
    fall = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min((step + 1) / WARM_UP_STEPS, fall)


def train_autoencoder(
    images: np.ndarray,
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 1e-3,
    start: AutoencoderKL | None = None,
    cycle: int = 0,
) -> AutoencoderKL:
    """Train, and set `scaling_factor` so that scaled latents have unit variance.

    Args:
        images: uint8 [n, 64, 64, 3] RGB.
        steps: optimiser steps.
        batch: images per step, at most n.
        seed: of weights, batches and posterior noise.
        learning_rate: its peak.
        start: trained weights to go on from; None starts anew.
        cycle: number of this learning-rate cycle; each has draws of its own.

    Returns:
        The autoencoder in evaluation mode (`start` itself where it is given).
    """
    torch.manual_seed(seed_for(seed, "autoencoder"))
    model = autoencoder() if start is None else start.train()
    if start is None:
        with torch.no_grad():  # almost no posterior noise: it would hide detail for long
            model.quant_conv.bias[4:] += FIRST_LOG_VARIANCE
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, steps)
    )
    rng = numpy_generator(seed, "autoencoder batches", cycle)
    noise = torch_generator(seed, "autoencoder noise", cycle)
    weight = face_weight(images.shape[1])
    bar = progress(range(steps), description="autoencoder", total=steps, unit="step")
    for step in bar:
        x = to_batch(images[np.sort(rng.choice(len(images), batch, replace=False))])
        if rng.random() < 0.5:
            x = x.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise)
            y = model.decode(z).sample.float()
        loss = reconstruction_loss(y, x, weight) + KL_WEIGHT * posterior.kl().float().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(psnr=round(psnr(y.detach(), x), 2))
    model = model.eval()
    chosen = rng.choice(len(images), min(MOMENT_SAMPLE, len(images)), replace=False)
    mean, std = latent_moments(model, images[np.sort(chosen)])
    model.register_to_config(scaling_factor=float(1 / torch.sqrt(mean.var() + (std**2).mean())))
    return model


@torch.no_grad()
def latent_moments(
    model: AutoencoderKL, images: np.ndarray, batch: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and standard deviation, float32 [n, 4, h / 4, w / 4] each, unscaled.

    Args:
        model: the autoencoder.
        images: uint8 [n, h, w, 3] RGB.
        batch: images per pass.
    """
    means, stds = [], []
    for first in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(to_batch(images[first : first + batch])).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)
