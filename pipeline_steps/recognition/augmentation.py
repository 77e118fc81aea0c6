"""Augmentation of recognition training images beyond the mirror image.

RandAugment: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced
search space", NeurIPS 2020; with 4 operations of magnitude 16 as in IDiff-Face (Boutros et al.,
ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
    from torchvision.transforms.v2 import RandAugment

    transform = RandAugment(num_ops=operations, magnitude=magnitude)

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        # torchvision draws from torch's global generator, which dropout needs undisturbed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            augmented = [transform(image) for image in images.permute(0, 3, 1, 2)]
        return torch.stack(augmented).permute(0, 2, 3, 1)

    return augment
