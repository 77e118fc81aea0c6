"""Random degradation of the faces that the embedded recognisers are trained on.

The recognisers judge samples of a 64-pixel diffusion model beside full-resolution renders, so they
see every resolution, blur, crop, colour and noise. One image in eight is spoiled (hidden,
scrambled, drowned in noise, a few pixels wide), so that the quality head learns what poor faces
look like.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

GROUPS = 8  # of a batch: one strength of degradation each; the first is spoiled


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror image, crop, resolution, blur, colour and noise.

    Args:
        x: [n, 3, 112, 112] in [-1, 1].
        generator: CPU generator of all draws.

    Returns:
        the same shape and range.
    """
    order = torch.randperm(len(x), generator=generator)
    x = _shift_crops(x[order], generator)
    # One strength per group of images: the resolution has to be the same within one call.
    spoiled, *others = x.tensor_split(GROUPS)
    parts = [_blur(_lower_resolution(part, 28, 84, generator), generator) for part in others]
    x = torch.cat([_spoil(spoiled, generator), *parts])[torch.argsort(order)]
    n = len(x)
    gain = 1 + _uniform((n, 1, 1, 1), 0.25, generator)
    tint = 1 + _uniform((n, 3, 1, 1), 0.06, generator)
    bias = _uniform((n, 1, 1, 1), 0.2, generator)
    noise = torch.randn(x.shape, generator=generator)
    noise_level = 0.05 * torch.rand((n, 1, 1, 1), generator=generator).square()
    return ((x + 1) * gain * tint - 1 + bias + noise * noise_level).clamp_(-1, 1)


def _uniform(shape: tuple[int, ...], half_width: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * half_width


def _shift_crops(x: Tensor, generator: torch.Generator) -> Tensor:
    """What an imperfect alignment does: shift 4 px, scale 5 %, rotation 4 degrees at most; flip."""
    n = len(x)
    angle = _uniform((n,), math.radians(4), generator)
    scale = 1 + _uniform((n,), 0.05, generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = _uniform((n, 2), 4 / 56, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    transform = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin, shift[:, 0]], dim=1),
            torch.stack([sin, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(transform, [n, 3, *x.shape[2:]], align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _lower_resolution(x: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Shrink to a size in low ... high px and enlarge again, for two groups of three."""
    if torch.rand((), generator=generator) > 2 / 3:
        return x
    size = int(torch.randint(low, high + 1, (), generator=generator))
    small = functional.interpolate(x, size=(size, size), mode="area")
    return functional.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def _spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade [n, 3, h, w] until recognition suffers, by one of four ways for the whole group."""
    if len(x) == 0:
        return x
    way = int(torch.randint(4, (), generator=generator))
    height, width = x.shape[2:]
    if way == 0:  # a few pixels
        size = int(torch.randint(6, 21, (), generator=generator))
        small = functional.interpolate(x, size=(size, size), mode="area")
        return functional.interpolate(small, size=(height, width), mode="bilinear")
    if way == 1:  # noise
        level = torch.rand((len(x), 1, 1, 1), generator=generator)
        return x + level * torch.randn(x.shape, generator=generator)
    if way == 2:  # a bar over a third to a half of the face
        rows = int(height * (1 / 3 + float(torch.rand((), generator=generator)) / 6))
        top = int(torch.randint(0, height - rows + 1, (), generator=generator))
        hidden = x.clone()
        hidden[:, :, top : top + rows] = _uniform((len(x), 3, 1, 1), 1.0, generator)
        return hidden
    # tiles of a quarter of the side, some of them exchanged
    tiles = x.unflatten(2, (4, -1)).unflatten(4, (4, -1)).transpose(3, 4).flatten(2, 3)
    order = torch.arange(16)
    chosen = torch.randperm(16, generator=generator)[
        : int(torch.randint(4, 13, (), generator=generator))
    ]
    order[chosen] = chosen.roll(1)
    shuffled = tiles[:, :, order].unflatten(2, (4, 4)).transpose(3, 4)
    return shuffled.flatten(4, 5).flatten(2, 3)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur up to sigma 1.2 px, for one group of two."""
    if torch.rand((), generator=generator) < 0.5:
        return x
    sigma = 0.3 + 0.9 * float(torch.rand((), generator=generator))
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 7)
    x = functional.conv2d(x, kernel.unsqueeze(2), padding=(0, 3), groups=3)
    return functional.conv2d(x, kernel.unsqueeze(3), padding=(3, 0), groups=3)
