from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline_steps.evidence.audit.copies import (
    band_passed,
    copy_threshold,
    nearest_photographs,
    pixel_similarity,
)


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Smooth random images, about as detailed as faces."""
    noise = np.random.default_rng(seed).standard_normal((n, 112, 112, 3))
    smooth = gaussian_filter(noise, (0, 4, 4, 0))
    return np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def resized(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((112, 112), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image[:, ::-1],
        lambda image: np.roll(image, (2, -1), (0, 1)),
        lambda image: (0.6 * image + 40).astype(np.uint8),
        jpeg,
        resized,
    ],
    ids=["same", "mirrored", "shifted", "exposure", "jpeg", "resized"],
)
def test_a_copy_agrees_whatever_was_done_to_it(change) -> None:
    originals = pictures(3)
    similarity = pixel_similarity(
        band_passed(np.stack([change(image) for image in originals])), band_passed(originals)
    )
    assert (np.diag(similarity) > 0.99).all()
    assert np.abs(similarity - np.diag(np.diag(similarity))).max() < 0.6


def test_similarity_is_the_correlation_of_the_pixels() -> None:
    first, second = band_passed(pictures(1, 1)), band_passed(pictures(1, 2))

    def window(patch: np.ndarray, down: int, right: int) -> np.ndarray:
        part = patch[8 + down : 104 + down, 8 + right : 104 + right]
        return part.reshape(48, 2, 48, 2).mean((1, 3)).ravel()

    shifts = range(-2, 3)
    expected = max(
        np.corrcoef(window(first[0], 0, 0), window(other, down, right))[0, 1]
        for other in (second[0], second[0][:, ::-1])
        for down in shifts
        for right in shifts
    )
    assert pixel_similarity(first, second)[0, 0] == pytest.approx(expected, abs=1e-5)


def test_a_flat_image_agrees_with_nothing() -> None:
    flat = band_passed(np.full((1, 112, 112, 3), 90, np.uint8))
    assert pixel_similarity(flat, band_passed(pictures(2))).max() == 0


def test_neighbours_are_other_photographs_of_the_same_person() -> None:
    one, two, three = band_passed(pictures(3))
    near = nearest_photographs(np.stack([one, two, one, three]), ["a", "a", "b", "c"])
    assert len(near) == 2  # b and c have a single photograph
    assert near[0] == pytest.approx(pixel_similarity(one[None], two[None])[0, 0], abs=0.05)
    assert near.max() < 0.9


def test_the_threshold_lies_between_the_closest_photographs_and_a_copy() -> None:
    nearest = np.full(1000, 0.9)
    assert copy_threshold(nearest, 0.5) == pytest.approx(0.95)
    nearest[:5] = 1.0  # photographs that stand in the set twice
    assert copy_threshold(nearest, 0.5) == pytest.approx(0.95)
    assert np.isnan(copy_threshold(np.empty(0), 0.5))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="112"):
        band_passed(np.zeros((1, 111, 111, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        band_passed(np.zeros((1, 112, 112, 3), np.float32))
