"""Backgrounds."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_steps.demo_world.rendering.parameters import PLACES
from pipeline_steps.demo_world.rendering.places import paint_place


def thumbnail(place: str, seed: int) -> np.ndarray:
    picture = paint_place(place, 96, np.random.default_rng(seed))
    return picture.reshape(8, 12, 8, 12, 3).mean((1, 3)).ravel()


@pytest.mark.parametrize("place", PLACES)
def test_a_place_varies_in_its_details_and_follows_its_seed(place: str) -> None:
    first, again, other = (paint_place(place, 64, np.random.default_rng(k)) for k in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_places_can_be_told_apart_at_a_glance() -> None:
    means = np.stack([np.mean([thumbnail(p, k) for k in range(8)], 0) for p in PLACES])
    right = [
        int(np.linalg.norm(means - thumbnail(place, seed), axis=1).argmin()) == index
        for index, place in enumerate(PLACES)
        for seed in range(100, 105)
    ]
    assert np.mean(right) > 0.85


def test_an_unknown_place_is_an_error() -> None:
    with pytest.raises(KeyError):
        paint_place("moon", 32, np.random.default_rng(0))
