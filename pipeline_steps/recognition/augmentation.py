"""Augmentation of recognition training images beyond the mirror image.

RandAugment: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced
search space", NeurIPS 2020; with 4 operations of magnitude 16 as in IDiff-Face (Boutros et al.,
ICCV 2023). Operations and their ranges are torchvision's (31 levels, black borders); here all
images of a batch that drew the same operation get it together, on whatever device they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from pipeline_steps.io.tensors import send

LEVELS = 31
MAX_SHEAR = 0.3
MAX_SHIFT = 150.0 / 331.0  # of the side
MAX_ROTATION = 30.0  # degrees
MAX_CHANGE = 0.9  # of brightness, colour, contrast, sharpness
MAX_LOST_BITS = 4

Operation = Callable[[Tensor, float], Tensor]  # uint8 [n, 3, h, w], signed magnitude in [-1, 1]


def _affine(images: Tensor, *, x: float = 0.0, y: float = 0.0, **shear: list[float]) -> Tensor:
    height, width = images.shape[-2:]
    return transforms.affine(
        images,
        angle=0.0,
        translate=[int(x * width), int(y * height)],
        scale=1.0,
        shear=shear.get("shear", [0.0, 0.0]),
        center=[0.0, 0.0] if shear else None,
    )


def _degrees(m: float) -> float:
    return math.degrees(math.atan(MAX_SHEAR * m))


def _posterise(images: Tensor, m: float) -> Tensor:
    return transforms.posterize(images, bits=8 - round(MAX_LOST_BITS * m))


def _solarise(images: Tensor, m: float) -> Tensor:
    return transforms.solarize(images, threshold=round(255 * (1 - m), 6))


# Operation and whether its sign is drawn.
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda images, m: images, False),
    "shear_x": (lambda images, m: _affine(images, shear=[_degrees(m), 0.0]), True),
    "shear_y": (lambda images, m: _affine(images, shear=[0.0, _degrees(m)]), True),
    "translate_x": (lambda images, m: _affine(images, x=MAX_SHIFT * m), True),
    "translate_y": (lambda images, m: _affine(images, y=MAX_SHIFT * m), True),
    "rotate": (lambda images, m: transforms.rotate(images, angle=MAX_ROTATION * m), True),
    "brightness": (
        lambda images, m: transforms.adjust_brightness(images, 1 + MAX_CHANGE * m),
        True,
    ),
    "colour": (lambda images, m: transforms.adjust_saturation(images, 1 + MAX_CHANGE * m), True),
    "contrast": (lambda images, m: transforms.adjust_contrast(images, 1 + MAX_CHANGE * m), True),
    "sharpness": (lambda images, m: transforms.adjust_sharpness(images, 1 + MAX_CHANGE * m), True),
    "posterise": (_posterise, False),
    "solarise": (_solarise, False),
    "autocontrast": (lambda images, m: transforms.autocontrast(images), False),
    "equalise": (lambda images, m: transforms.equalize(images), False),
}


def randaugment(
    operations: int = 4, magnitude: int = 16
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """RandAugment, drawn for each image apart.

    Args:
        operations: operations per image.
        magnitude: 0 ... 30.

    Returns:
        a function of uint8 RGB images [n, h, w, 3] and a CPU generator.
    """
    strength = magnitude / (LEVELS - 1)
    table = list(OPERATIONS.values())

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        images = images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        drawn = torch.randint(len(table), (operations, len(images)), generator=generator)
        negative = torch.rand(operations, len(images), generator=generator) < 0.5
        for kinds, signs in zip(drawn, negative, strict=True):
            for kind, (operation, signed) in enumerate(table):
                for sign in (1.0, -1.0) if signed else (1.0,):
                    chosen = kinds == kind
                    if signed:
                        chosen &= signs == (sign < 0)
                    rows = send(chosen.nonzero().squeeze(1), images.device)
                    if len(rows):
                        images[rows] = operation(images[rows], sign * strength)
        return images.permute(0, 2, 3, 1)

    return augment
