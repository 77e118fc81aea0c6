"""Fréchet distance between two sets of features.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
NeurIPS 2017, Eq. 6; Dowson and Landau, 1982. It is called FID only with the Inception-v3 weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Matrix, Undefined, feature_matrix, same_width
from pipeline_steps.metrics.intervals import (
    NO_INTERVAL,
    ROOT,
    Interval,
    Mask,
    Values,
    jackknife_interval,
    leave_out,
)

CANCELLED = 1e-12  # share of the traces that float64 leaves of sums that cancel


def frechet_distance(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Fréchet distance of the Gaussians fitted to two feature sets.

    |mu_r - mu_s|^2 + tr(S_r) + tr(S_s) - 2 tr((S_r S_s)^(1/2)), with unbiased covariances.

    The last trace never forms a matrix square root. With S = A^T A, where A holds the centred rows
    divided by sqrt(n - 1), the non-zero eigenvalues of S_r S_s are those of M M^T for
    M = A_r A_s^T, so tr((S_r S_s)^(1/2)) is the sum of M's singular values. This is real,
    non-negative and symmetric by construction, and exact for rank-deficient covariances (n <= d),
    where a general matrix square root returns complex or perturbed values.

    The estimate is biased upwards by an amount that falls with n: compare sets of equal size only.

    Args:
        real: features [n, d], n >= 2.
        synthetic: features [m, d], m >= 2.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        ValueError: wrong shapes, fewer than two rows, values that are not finite.
    """
    x = feature_matrix(real, name="real", min_rows=2)
    y = feature_matrix(synthetic, name="synthetic", min_rows=2)
    same_width(x, y)
    return weighted_frechet_distance(x, y, np.ones(len(x)), np.ones(len(y)))


def frechet_distance_at_infinity(
    real: ArrayLike,
    synthetic: ArrayLike,
    *,
    points: int = 15,
    smallest: float = 0.5,
    rng: np.random.Generator,
) -> float:
    """Fréchet distance extrapolated to infinitely many images.

    Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them", CVPR
    2020, Eq. 9: the bias falls as 1/n to first order, so a line is fitted through the distances of
    random subsets against 1/n, and its value at 1/n = 0 is the estimate. Both sets are drawn to the
    same n here, because both are samples; the paper extrapolates the generator's alone.

    Args:
        real: features [n, d].
        synthetic: features [m, d].
        points: number of subset sizes, >= 2; 15 in the paper.
        smallest: smallest size as a share of the smaller set, in (0, 1). The bias is a line in 1/n
            only well above n = d, so the paper's 0.1 needs far more images than dimensions.
        rng: generator of the subsets.

    Returns:
        The estimate, which may be below zero. With n <= d it still holds much of the bias.

    Raises:
        ValueError: as `frechet_distance`, or too few rows for so many sizes.
    """
    if points < 2 or not 0.0 < smallest < 1.0:
        raise ValueError("an extrapolation needs two sizes or more, the smallest a share below 1")
    x = feature_matrix(real, name="real", min_rows=2)
    y = feature_matrix(synthetic, name="synthetic", min_rows=2)
    same_width(x, y)
    n = min(len(x), len(y))
    sizes = np.linspace(smallest * n, n, points).astype(int)
    if sizes[0] < 2 or len(set(sizes.tolist())) < 2:
        raise Undefined(f"{n} rows are too few to extrapolate to infinitely many")
    distances = [
        frechet_distance(
            x[rng.choice(len(x), size=size, replace=False)],
            y[rng.choice(len(y), size=size, replace=False)],
        )
        for size in sizes
    ]
    slope_and_intercept = np.polyfit(1.0 / sizes, distances, 1)
    return float(slope_and_intercept[1])


def weighted_frechet_distance(
    real: Matrix,
    synthetic: Matrix,
    real_weights: NDArray[np.float64],
    synthetic_weights: NDArray[np.float64],
) -> float:
    """Fréchet distance where row i counts `weights[i]` times (a bootstrap replicate).

    Args:
        real, synthetic: features [n, d] and [m, d].
        real_weights, synthetic_weights: counts [n] and [m], >= 0, summing to more than 1.

    Returns:
        The same number as `frechet_distance` of the repeated rows.
    """
    mean_real, root_real = _mean_and_root(real, real_weights)
    mean_synthetic, root_synthetic = _mean_and_root(synthetic, synthetic_weights)
    difference = mean_real - mean_synthetic
    cross = np.linalg.svd(root_real @ root_synthetic.T, compute_uv=False).sum()
    # Frobenius norms are the traces of the covariances.
    traces = np.square(root_real).sum() + np.square(root_synthetic).sum()
    distance = difference @ difference + traces - 2.0 * cross
    # Two equal sets cancel to rounding error.
    return 0.0 if distance <= CANCELLED * traces else float(distance)


def frechet_interval(
    real: ArrayLike,
    synthetic: ArrayLike,
    real_identities: Sequence[str],
    synthetic_identities: Sequence[str],
    *,
    groups: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """Interval of the Fréchet distance's mean at these set sizes.

    Identities are left out together with all their images: from both sets at once where the sets
    share identities (synthetic images of the real people), else from one set after the other.

    Args:
        real, synthetic: features [n, d] and [m, d].
        real_identities, synthetic_identities: one name per row; give every row its own name where
            images are independent.
        groups: most groups of identities to leave out, each of which costs one distance; below 2
            there is no interval.
        rng: deals identities into groups where there are more of them.
        level: confidence level, in (0, 1).

    Raises:
        ValueError: as `frechet_distance`, or names that don't match the rows.
    """
    x = feature_matrix(real, name="real", min_rows=2)
    y = feature_matrix(synthetic, name="synthetic", min_rows=2)
    same_width(x, y)
    x_names, y_names = np.asarray(real_identities, str), np.asarray(synthetic_identities, str)
    if len(x_names) != len(x) or len(y_names) != len(y):
        raise ValueError("the interval needs one identity name per feature row")
    if groups < 2:
        return NO_INTERVAL
    x_units, y_units = np.unique(x_names), np.unique(y_names)
    x_all, y_all = np.ones(len(x)), np.ones(len(y))

    def rows(names: NDArray[np.str_], units: NDArray[np.str_], kept: Mask) -> Values:
        return kept[np.searchsorted(units, names)].astype(np.float64)

    def distances(weights: Sequence[tuple[Values, Values]]) -> Values:
        if any(min(a.sum(), b.sum()) < 2 for a, b in weights):
            return np.empty(0)  # somebody's images are nearly the whole set
        return np.array([weighted_frechet_distance(x, y, a, b) for a, b in weights])

    if len(np.intersect1d(x_units, y_units)):
        units = np.union1d(x_units, y_units)
        kept = leave_out(len(units), groups, rng)
        weights = [(rows(x_names, units, k), rows(y_names, units, k)) for k in kept]
        samples = [distances(weights)]
    else:
        without_x = [rows(x_names, x_units, k) for k in leave_out(len(x_units), groups, rng)]
        without_y = [rows(y_names, y_units, k) for k in leave_out(len(y_units), groups, rng)]
        samples = [
            distances([(kept, y_all) for kept in without_x]),
            distances([(x_all, kept) for kept in without_y]),
        ]
    return jackknife_interval(frechet_distance(x, y), samples, ROOT, level)


def _mean_and_root(rows: Matrix, weights: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """Weighted mean [d] and a root A with A^T A = covariance, at most d rows long."""
    used = weights > 0
    rows, weights = rows[used], weights[used]
    total = weights.sum()
    if total <= 1:
        raise ValueError("a covariance needs weights that sum to more than 1")
    mean = weights @ rows / total
    root = (rows - mean) * np.sqrt(weights / (total - 1.0))[:, None]
    if root.shape[0] > root.shape[1]:
        # A = QR and Q^T Q = 1, so R is a root too, and smaller.
        root = np.linalg.qr(root, mode="r")
    return mean, root
