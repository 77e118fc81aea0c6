"""Faces cut out of rendered photographs for training."""

from __future__ import annotations

import numpy as np

from pipeline_steps.demo_world.pretraining.training_images import TrainingImages
from pipeline_steps.demo_world.rendering.crops import face_crops, stretched_box
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE

MARKS = np.array([[50.0, 54.0], [78.0, 54.0], [64.0, 70.0], [53.0, 84.0], [75.0, 84.0]])


def dots(points: np.ndarray) -> np.ndarray:
    """A black image with a bright disc at each point, in a colour of its own."""
    y, x = np.mgrid[:128, :128]
    image = np.zeros((128, 128, 3), np.uint8)
    for k, (px, py) in enumerate(points):
        image[(x - px) ** 2 + (y - py) ** 2 <= 9] = np.array([250 - 40 * k, 0, 50 + 40 * k])
    return image


def centres(crop: np.ndarray) -> np.ndarray:
    """Where the five discs are in a crop."""
    y, x = np.mgrid[: len(crop), : len(crop)]
    found = []
    for k in range(5):
        near = np.abs(crop.astype(int) - [250 - 40 * k, 0, 50 + 40 * k]).sum(-1) < 30
        found.append((x[near].mean(), y[near].mean()))
    return np.array(found)


def photographs(n: int) -> TrainingImages:
    nothing = np.zeros(n, int)
    return TrainingImages(
        images=np.stack([dots(MARKS)] * n),
        landmarks=np.stack([MARKS] * n).astype(np.float32),
        identity=nothing,
        expression=nothing,
        place=nothing,
        yaw=nothing,
        male=nothing,
    )


def test_aligned_crops_scatter_about_the_template() -> None:
    crops = face_crops(photographs(24), 0, low_resolution=0, stretched=0)
    assert crops.shape == (24, 112, 112, 3)
    assert crops.dtype == np.uint8
    found = np.stack([centres(crop) for crop in crops])
    np.testing.assert_allclose(found.mean(0), ARCFACE_TEMPLATE, atol=5)
    assert 0.2 < found.std(0).mean() < 5
    again = face_crops(photographs(24), 0, low_resolution=0, stretched=0)
    np.testing.assert_array_equal(crops, again)
    assert (face_crops(photographs(2), 1, low_resolution=0, stretched=0) != crops[:2]).any()


def test_half_size_crops_show_the_same_places() -> None:
    small = face_crops(photographs(24), 0, low_resolution=1, stretched=0)
    full = face_crops(photographs(24), 0, low_resolution=0, stretched=0)
    brightness = [crops.max(-1).astype(float).mean(0) for crops in (small, full)]
    assert np.corrcoef(brightness[0].ravel(), brightness[1].ravel())[0, 1] > 0.8


def test_a_stretched_box_holds_the_whole_face_upright() -> None:
    rng = np.random.default_rng(0)
    boxes = [stretched_box(dots(MARKS), MARKS, rng) for _ in range(20)]
    assert all(box.shape == (112, 112, 3) for box in boxes)
    found = np.stack([centres(box) for box in boxes]).mean(0)
    assert found[0, 0] < 50 < 62 < found[1, 0]
    assert found[:2, 1].mean() < 55
    assert found[3:, 1].mean() > 70
    corner = stretched_box(dots(MARKS), MARKS - 60, rng)  # reaches outside the image
    assert corner.shape == (112, 112, 3)
