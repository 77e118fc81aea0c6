"""RandAugment on batches against torchvision's own, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from pipeline_steps.recognition.augmentation import OPERATIONS, randaugment

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterise": "Posterize",
    "solarise": "Solarize",
    "autocontrast": "AutoContrast",
    "equalise": "Equalize",
}


def pictures(n: int = 3, size: int = 112) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 230, (n, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    noisy = coarse + rng.normal(0, 8, coarse.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", [0, 9, 16, 30])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_on_a_batch_equal_torchvisions_on_each_image(
    name: str, level: int, sign: float
) -> None:
    reference = RandAugment(magnitude=level)
    magnitudes_of, signed = reference._AUGMENTATION_SPACE[THEIRS[name]]
    operation, ours_signed = OPERATIONS[name]
    assert signed == ours_signed
    assert set(THEIRS.values()) == set(reference._AUGMENTATION_SPACE)
    if sign < 0 and not signed:
        return
    magnitudes = magnitudes_of(31, 112, 112)
    magnitude = 0.0 if magnitudes is None else sign * float(magnitudes[level])
    images = pictures().permute(0, 3, 1, 2)
    images[images == 119] = 120  # exactly level 16's threshold, which their float32 misses by 1e-6
    expected = [
        reference._apply_image_or_video_transform(
            image, THEIRS[name], magnitude, interpolation=InterpolationMode.NEAREST, fill={}
        )
        for image in images
    ]
    difference = operation(images, sign * level / 30).int() - torch.stack(expected).int()
    # Their factors are rounded to float32, so that a value exactly between two may go either way.
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 5e-3


def test_every_image_draws_for_itself_and_the_global_generator_stays() -> None:
    images = pictures(1).repeat(64, 1, 1, 1)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    augmented = randaugment(4, 16)(images, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert len(augmented.flatten(1).unique(dim=0)) > 55
    assert torch.equal(images, pictures(1).repeat(64, 1, 1, 1))


def test_operations_are_drawn_equally_often_with_either_sign() -> None:
    """One operation at full strength of a picture on which all differ, counted over 4 200 draws."""
    image = pictures(1, size=16)
    table = {}
    for name, (operation, signed) in OPERATIONS.items():
        for sign in (1.0, -1.0) if signed else (1.0,):
            shown = operation(image.permute(0, 3, 1, 2), sign).permute(0, 2, 3, 1)
            table[shown.numpy().tobytes()] = (name, 150 if signed else 300)
    drawn = randaugment(1, 30)(image.repeat(4200, 1, 1, 1), torch.Generator().manual_seed(1))
    counts: dict[bytes, int] = dict.fromkeys(table, 0)
    for picture in drawn:
        counts[picture.numpy().tobytes()] += 1
    chi_square = sum((counts[key] - n) ** 2 / n for key, (_, n) in table.items())
    assert len(table) == 23
    assert chi_square < 48.3  # 99.9 % of 22 degrees of freedom
