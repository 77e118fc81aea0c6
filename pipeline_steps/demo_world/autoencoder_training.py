"""Train the embedded autoencoder: reconstruction, sharpened by an edge term, with a light KL (Rombach et al. 2022)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline_steps.demo_world.architectures import autoencoder
from pipeline_steps.files.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for, torch_generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def to_batch(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def halve(images: np.ndarray) -> np.ndarray:
    """Box-average uint8 images [n, 2h, 2w, 3] to [n, h, w, 3]."""
    n, h, w, c = images.shape
    mean = images.reshape(n, h // 2, 2, w // 2, 2, c).astype(np.uint16).sum((2, 4))
    return ((mean + 2) // 4).astype(np.uint8)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def face_weight(size: int) -> torch.Tensor:
    """Weight [1, 1, size, size] that counts the middle, where the face stands, three times as much as the border."""
    axis = torch.linspace(-1, 1, size)
    d = (axis[None, :] / 0.42) ** 2 + ((axis[:, None] - 0.05) / 0.55) ** 2
    weight = 1 + 2 * torch.exp(-(d**2))
    return (weight / weight.mean())[None, None]


def contrast_weight(x: torch.Tensor) -> torch.Tensor:
    """Weight [n, 1, h, w] that rises where a picture [n, 3, h, w] is dark, so that the features of dark skin, whose
    differences in pixel values are small, count as much as those of light skin; mean 1 over the batch."""
    light = functional.avg_pool2d(
        (x.mean(1, keepdim=True) + 1) / 2, 9, stride=1, padding=4, count_include_pad=False
    )
    weight = 1 / (0.12 + light)
    return weight / weight.mean()


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
    """Train on uint8 [n, 64, 64, 3] and set `scaling_factor` so that scaled latents have unit variance.

    `start` goes on from trained weights with a fresh learning-rate cycle, number `cycle`, on draws of its own.
    """
    torch.manual_seed(seed_for(seed, "autoencoder"))
    model = autoencoder() if start is None else start.train()
    if start is None:
        with (
            torch.no_grad()
        ):  # begin almost without posterior noise: it would hide detail for hundreds of steps
            model.quant_conv.bias[4:] -= 5.0
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min((s + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps))),
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
        w = weight * contrast_weight(x)
        loss = (w * (y - x).abs()).mean()
        for difference, sides in (
            (w[..., 1:], _edges(y - x)[0]),
            (w[..., 1:, :], _edges(y - x)[1]),
        ):
            loss = loss + 0.7 * (difference * sides.abs()).mean()
        loss = loss + 2e-6 * posterior.kl().float().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 and hasattr(bar, "set_postfix"):
            bar.set_postfix(
                psnr=round(psnr(y.detach(), x), 2), std=round(float(z.detach().std()), 3)
            )
    model = model.eval()
    sample = images[np.sort(rng.choice(len(images), min(512, len(images)), replace=False))]
    mean, std = latent_moments(model, sample)
    model.register_to_config(scaling_factor=float(1 / torch.sqrt(mean.var() + (std**2).mean())))
    return model


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(-10 * torch.log10(functional.mse_loss(a.clamp(-1, 1), b) / 4))


@torch.no_grad()
def latent_moments(
    model: AutoencoderKL, images: np.ndarray, batch: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and standard deviation [n, 4, 16, 16], unscaled, of uint8 images [n, 64, 64, 3]."""
    means, stds = [], []
    for first in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(to_batch(images[first : first + batch])).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)
