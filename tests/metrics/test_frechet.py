from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from pipeline_steps.metrics.frechet import frechet_distance, weighted_frechet_distance


def exact_moments(rng: np.random.Generator, n: int, mean: np.ndarray, covariance: np.ndarray):
    """A sample whose mean and unbiased covariance are exactly the given ones."""
    raw = rng.standard_normal((n, len(mean)))
    raw -= raw.mean(axis=0)
    whitened = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def textbook(x: np.ndarray, y: np.ndarray) -> float:
    """The formula of Heusel et al. with scipy's general matrix square root."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(sx @ sy))
    difference = x.mean(axis=0) - y.mean(axis=0)
    return float(difference @ difference + np.trace(sx + sy - 2 * root))


def test_equals_the_closed_form_for_commuting_covariances() -> None:
    rng = np.random.default_rng(0)
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    shift = np.array([1.0, -2.0, 0.5])
    x = exact_moments(rng, 400, np.zeros(3), np.diag(a))
    y = exact_moments(rng, 300, shift, np.diag(b))
    expected = shift @ shift + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_equals_the_formula_with_scipys_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 24)) @ rng.standard_normal((24, 24))
    y = rng.standard_normal((420, 24)) @ rng.standard_normal((24, 24)) + 0.3
    assert frechet_distance(x, y) == pytest.approx(textbook(x, y), rel=1e-8)


def test_covariances_without_full_rank_are_exact() -> None:
    rng = np.random.default_rng(2)
    # Fewer rows than columns: embed a low-dimensional pair isometrically, which changes nothing.
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((10, 5)) * 2 + 1
    basis = np.linalg.qr(rng.standard_normal((64, 5)))[0]
    assert frechet_distance(x @ basis.T, y @ basis.T) == pytest.approx(textbook(x, y), rel=1e-9)


def test_is_symmetric_and_zero_for_equal_sets() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((40, 8)), rng.standard_normal((50, 8)) + 1
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)


def test_weights_count_repeated_rows() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((20, 6)), rng.standard_normal((15, 6)) + 0.5
    wx, wy = rng.integers(0, 4, 20), rng.integers(0, 4, 15)
    repeated = frechet_distance(np.repeat(x, wx, axis=0), np.repeat(y, wy, axis=0))
    weighted = weighted_frechet_distance(x, y, wx.astype(float), wy.astype(float))
    assert weighted == pytest.approx(repeated, rel=1e-10)


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), "at least 2 rows"),
        (np.ones((5, 3)), np.ones((5, 4)), "different extractors"),
        (np.ones(5), np.ones((5, 1)), r"\[n, d\]"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "not finite"),
    ],
)
def test_unusable_features_are_refused(real, synthetic, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, synthetic)
