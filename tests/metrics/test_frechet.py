from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from pipeline_steps.metrics.frechet import (
    frechet_distance,
    frechet_distance_at_infinity,
    weighted_frechet_distance,
)


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


def test_equals_torch_fidelity_and_clean_fid() -> None:
    import torch
    from cleanfid.fid import frechet_distance as clean
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 16))
    y = rng.standard_normal((250, 16)) @ rng.standard_normal((16, 16)) + 0.3
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    moments = [(rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in (x, y)]
    assert frechet_distance(x, y) == pytest.approx(clean(*moments[0], *moments[1]), rel=1e-6)


def test_extrapolation_takes_the_bias_out() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((600, 16)), rng.standard_normal((500, 16)) * 1.2 + 0.2
    truth = 16 * (0.2**2 + 0.2**2)
    plain = frechet_distance(x[:500], y)
    found = frechet_distance_at_infinity(x, y, rng=rng)
    assert plain - truth > 0.2
    assert found == pytest.approx(truth, abs=0.12)


def test_extrapolation_is_a_straight_line_through_subsets() -> None:
    x, y = (np.random.default_rng(seed).standard_normal((80, 3)) for seed in (7, 8))
    found = frechet_distance_at_infinity(
        x, y, points=4, smallest=0.25, rng=np.random.default_rng(9)
    )
    rng = np.random.default_rng(9)
    sizes = [20, 40, 60, 80]
    distances = []
    for size in sizes:
        a = x[rng.choice(80, size=size, replace=False)]
        distances.append(textbook(a, y[rng.choice(80, size=size, replace=False)]))
    line = scipy.stats.linregress([1 / size for size in sizes], distances)
    assert found == pytest.approx(line.intercept, rel=1e-6)
    with pytest.raises(ValueError, match="too few to extrapolate"):
        frechet_distance_at_infinity(x[:2], y, rng=rng)


def test_equal_and_collapsed_sets_have_no_distance_left_by_rounding() -> None:
    rng = np.random.default_rng(9)
    for rows in (rng.standard_normal((40, 64)), 1e3 * rng.standard_normal((80, 16))):
        assert frechet_distance(rows, rows[::-1]) == 0.0
    one = np.repeat(rng.standard_normal((1, 64)), 40, axis=0)
    assert frechet_distance(one, one) == 0.0
    assert frechet_distance(one, one + 1.0) == pytest.approx(64.0)
