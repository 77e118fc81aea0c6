from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline_steps.metrics import neighbours
from pipeline_steps.metrics.authenticity import authenticity_percentage


def literal(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Alaa et al., Section 3.3, with all distances at once."""
    within = cdist(real, real)
    np.fill_diagonal(within, np.inf)
    across = cdist(real, synthetic)
    nearest = across.argmin(axis=0)
    authentic = within.min(axis=1)[nearest] < across.min(axis=0)
    return 100.0 * authentic.mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_definition(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TILE", 30)
    rng = np.random.default_rng(0)
    real = (rng.standard_normal((100, 5)) + 50).astype(dtype)
    near = real[:40] + 0.2 * rng.standard_normal((40, 5))
    synthetic = np.concatenate([near, rng.standard_normal((50, 5)) + 50]).astype(dtype)
    found = authenticity_percentage(real, synthetic)
    assert found == pytest.approx(literal(real, synthetic), rel=1e-12)
    assert 20 < found < 90


def test_copies_are_not_authentic_and_far_images_are() -> None:
    real = np.random.default_rng(1).standard_normal((30, 6))
    assert authenticity_percentage(real, real[:10]) == 0.0
    assert authenticity_percentage(real, real + 1e3) == 100.0
