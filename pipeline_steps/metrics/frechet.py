"""Fréchet distance between two sets of features.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
NeurIPS 2017, Eq. 6; Dowson and Landau, 1982. It is called FID only with the Inception-v3 weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Matrix, feature_matrix, same_width


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
    # Two equal sets cancel to rounding error, whose sign is arbitrary.
    return float(max(difference @ difference + traces - 2.0 * cross, 0.0))


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
