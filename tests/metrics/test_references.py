from __future__ import annotations

import numpy as np
import pytest
from recomputed.audit import agreement_with

from pipeline_steps.metrics.references import fidelity, reference_distance


def test_distance_is_to_the_mean_direction_of_the_own_photographs() -> None:
    photographs = np.array([[1.0, 0, 0], [0, 5.0, 0], [0, 0, 1.0]])
    images = np.array([[3.0, 3.0, 0], [0, 2.0, 0], [0, 0, -1.0], [1.0, 0, 0]])
    found = reference_distance(images, ["a", "a", "b", "nobody"], photographs, ["a", "a", "b"])
    assert found == pytest.approx((0.0 + (1 - 0.5**0.5) + 2.0) / 3)
    assert np.isnan(reference_distance(images[:1], ["x"], photographs, ["a", "a", "b"]))
    with pytest.raises(ValueError, match="different extractors"):
        reference_distance(images[:, :2], ["a"] * 4, photographs, ["a"] * 3)


def test_fidelity_is_that_of_the_closest_photograph_by_the_definition() -> None:
    draw = np.random.default_rng(0)
    photographs = draw.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    noise = draw.integers(-9, 10, photographs[1].shape)
    image = np.clip(photographs[1] + noise, 0, 255).astype(np.uint8)
    assert fidelity(image, photographs) == pytest.approx(agreement_with(image, photographs))
    assert fidelity(image, photographs) == fidelity(image, photographs[1:2])
    assert fidelity(photographs[0], photographs) == (float("inf"), pytest.approx(1.0))
