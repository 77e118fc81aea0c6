"""Training of the embedded autoencoder: reconstruction that sees eyes and dark areas, a light KL.

Source of the model and of the KL's role: Rombach et al., "High-Resolution Image Synthesis with
Latent Diffusion Models", CVPR 2022. Levels and edges are compared after a square root, in which a
dark face's contrasts count as much as a light one's; the renderer's own landmarks say where eyes
and mouth are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.seeds import seed_for

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

RESOLUTION = 64  # pixels
DOWNSAMPLING = 4  # pixels per latent and axis
# Four lose eyes; sixteen would be much to predict for a denoiser of seven million weights.
LATENT_CHANNELS = 8
LINEAR_SHARE = 0.3  # of the comparison before the square root
DARKEST = 0.02  # added under the root: a limit to how much black counts
EDGE_WEIGHT = 0.7
EYE_WEIGHT, MOUTH_WEIGHT, FACE_WEIGHT = 6.0, 2.0, 1.5  # beside 1 of every pixel
EYE_RADIUS, MOUTH_RADIUS, FACE_RADIUS = 0.28, 0.35, 1.1  # of the distance between the eyes
LEAST_DISTANCE = 0.12  # of the width; a turned head's eyes come closer
KL_WEIGHT = 2e-6
FIRST_LOG_VARIANCE = -5.0  # of the posterior, before training
MOMENT_SAMPLE = 512  # images from which the latents' variance is measured
CHUNK = 64  # images per pass without gradients


def network() -> AutoencoderKL:
    """Untrained AutoencoderKL: images [n, 3, 64, 64] in [-1, 1] to latents [n, 8, 16, 16]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 80),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def to_batch(images: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def stage(
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training of the autoencoder.

    Args:
        columns: `pictures` and `landmarks` of n photographs, see images.py.
        unseen: the same of photographs on which it is measured.
        run: device and precision.
        seed: of weights, batches and all other draws.
        amounts: length, batch and learning rate.
    """
    torch.manual_seed(seed_for(seed, "autoencoder"))
    model = network().to(run.device, memory_format=torch.channels_last).train()
    with torch.no_grad():  # almost no posterior noise: it would hide detail for long
        model.quant_conv.bias[model.config.latent_channels :] += FIRST_LOG_VARIANCE
    pictures, landmarks = (
        torch.from_numpy(columns[name]).to(run.device) for name in ("pictures", "landmarks")
    )

    def loss(count: int, generator: torch.Generator) -> Tensor:
        at = torch.randint(len(pictures), (count,), generator=generator, device=run.device)
        x, marks = to_batch(pictures[at]), landmarks[at]
        mirrored = torch.rand(count, generator=generator, device=run.device) < 0.5
        x, marks = mirror(x, marks, mirrored)
        x = x.contiguous(memory_format=torch.channels_last)
        with run.autocast():
            posterior = model.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=run.device)
            y = model.decode(posterior.mean + posterior.std * noise).sample
        difference = reconstruction_loss(y.float(), x, place_weights(marks, x.shape[-1]))
        return difference + KL_WEIGHT * posterior.kl().float().mean()

    return Stage(
        name="autoencoder",
        seed=seed,
        networks=model,
        loss=loss,
        measure=lambda average: reconstruction_quality(
            average, unseen["pictures"], unseen["landmarks"], run
        ),
        amounts=amounts,
        warm_up=2_000,
        hold=50_000,
        decay=1e-4,
    )


def mirror(x: Tensor, marks: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror some pictures [n, 3, h, w] and their landmarks [n, 5, 2]; `which`: bool [n]."""
    flipped = torch.stack([x.shape[-1] - 1 - marks[..., 0], marks[..., 1]], -1)
    return (
        torch.where(which[:, None, None, None], x.flip(-1), x),
        torch.where(which[:, None, None], flipped, marks),
    )


def place_weights(marks: Tensor, size: int) -> Tensor:
    """What each pixel counts: float32 [n, 1, size, size] of mean 1 over each picture, from
    landmarks [n, 5, 2] in pixels: eyes, nose, corners of the mouth.
    """
    distance = eye_distance(marks, size)
    axis = torch.arange(size, device=marks.device, dtype=torch.float32)

    def spot(centre: Tensor, radius: float) -> Tensor:
        dx, dy = axis - centre[:, :1], axis - centre[:, 1:]
        squares = dx.square()[:, None, :] + dy.square()[:, :, None]
        return torch.exp(-0.5 * squares / (radius * distance[:, None, None]).square())

    eyes = spot(marks[:, 0], EYE_RADIUS) + spot(marks[:, 1], EYE_RADIUS)
    mouth = spot(marks[:, 3:].mean(1), MOUTH_RADIUS)
    face = spot(marks.mean(1), FACE_RADIUS)
    weight = 1 + EYE_WEIGHT * eyes + MOUTH_WEIGHT * mouth + FACE_WEIGHT * face
    return (weight / weight.mean((1, 2), keepdim=True))[:, None]


def eye_distance(marks: Tensor, size: int) -> Tensor:
    """Distance between the eyes in pixels [n], at least LEAST_DISTANCE of the picture's size."""
    return (marks[:, 0] - marks[:, 1]).norm(dim=1).clamp(min=LEAST_DISTANCE * size)


def root(x: Tensor) -> Tensor:
    """Square root of brightness: [-1, 1] to about [0.14, 1]; differences count most in the dark."""
    return ((x + 1) / 2).clamp(min=0).add(DARKEST).sqrt()


def reconstruction_loss(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 distance of a reconstruction y and an original x [n, 3, h, w] in [-1, 1], of
    their roots, and of the roots' edges: a scalar; `weight`: of the pixels, [n, 1, h, w].
    """
    d = root(y) - root(x)
    across, down = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
    loss = LINEAR_SHARE * (weight * (y - x).abs()).mean() + (weight * d.abs()).mean()
    loss = loss + EDGE_WEIGHT * (weight[..., 1:] * across.abs()).mean()
    return loss + EDGE_WEIGHT * (weight[..., 1:, :] * down.abs()).mean()


@torch.no_grad()
def reconstruction_quality(
    model: Any, pictures: np.ndarray, landmarks: np.ndarray, run: Run | None = None
) -> dict[str, float]:
    """Peak signal-to-noise ratio of decoded pictures, dB.

    Args:
        model: an AutoencoderKL in evaluation mode.
        pictures: uint8 [n, s, s, 3] RGB.
        landmarks: float32 [n, 5, 2], pixels.
        run: precision; None: as the model is.

    Returns:
        `psnr` over all; `psnr_dark` over the fifth of the pictures whose faces are darkest;
        `psnr_eyes` over the pixels within half an eye distance of either eye.
    """
    device = next(model.parameters()).device
    squares, eyes, light = [], [], []
    for first in range(0, len(pictures), CHUNK):
        x = to_batch(torch.from_numpy(pictures[first : first + CHUNK]).to(device))
        marks = torch.from_numpy(landmarks[first : first + CHUNK]).to(device)
        autocast = run.autocast() if run else nullcontext()
        with autocast:
            y = model.decode(model.encode(x).latent_dist.mean).sample
        squares.append((y.float().clamp(-1, 1) - x).square().mean(1) / 4)
        eyes.append(near(marks[:, :2], 0.5 * eye_distance(marks, x.shape[-1]), x.shape[-1]))
        face = near(marks[:, 2:3], eye_distance(marks, x.shape[-1]), x.shape[-1])
        light.append((x.mean(1) * face).sum((1, 2)) / face.sum((1, 2)))
    error, at_eyes = torch.cat(squares), torch.cat(eyes)
    darkest = torch.cat(light).argsort()[: max(1, len(pictures) // 5)]
    return {
        "psnr": decibels(error.mean()),
        "psnr_dark": decibels(error[darkest].mean()),
        "psnr_eyes": decibels(error[at_eyes].mean()),
    }


def near(points: Tensor, radius: Tensor, size: int) -> Tensor:
    """Pixels within a radius [n] of any of the points [n, k, 2]: bool [n, size, size]."""
    axis = torch.arange(size, device=points.device, dtype=torch.float32)
    dx, dy = axis - points[..., :1], axis - points[..., 1:]
    squares = dx.square()[..., None, :] + dy.square()[..., :, None]
    return (squares <= radius.square()[:, None, None, None]).any(1)


def decibels(error: Tensor) -> float:
    """PSNR of a mean squared error of pictures in [0, 1]."""
    return float(-10 * torch.log10(error))


@torch.no_grad()
def scale(model: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Set `scaling_factor` so that scaled latents have unit variance."""
    factor = float(1 / torch.sqrt(mean.float().var() + std.float().square().mean()))
    model.register_to_config(scaling_factor=factor)


@torch.no_grad()
def latent_moments(model: AutoencoderKL, pictures: np.ndarray, run: Run) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior of pictures uint8 [n, h, w, 3]: unscaled,
    float16 [n, c, h / 4, w / 4] each, on the CPU.
    """
    means, stds = [], []
    for first in range(0, len(pictures), CHUNK):
        x = to_batch(torch.from_numpy(pictures[first : first + CHUNK]).to(run.device))
        with run.autocast():
            posterior = model.encode(x).latent_dist
        means.append(posterior.mean.half().cpu())
        stds.append(posterior.std.half().cpu())
    return torch.cat(means).contiguous(), torch.cat(stds).contiguous()
