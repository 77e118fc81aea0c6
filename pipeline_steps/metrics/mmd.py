"""CLIP maximum mean discrepancy (CMMD).

Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation",
CVPR 2024, Eq. 3 and Section 4: squared MMD with a Gaussian kernel on normalised CLIP embeddings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline_steps.metrics.arrays import Matrix, feature_matrix, same_width, unit_rows

BLOCK_ROWS = 1024


def cmmd(
    real: ArrayLike, synthetic: ArrayLike, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """Squared MMD between L2-normalised rows, biased (V-statistic) estimator as published.

    scale * (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)), k(a, b) = exp(-|a - b|^2 / 2 sigma^2),
    each mean over all pairs, a row with itself included. Every kernel value lies near 1 for
    sigma = 10, so the means are taken of k - 1 (expm1), which leaves the result the same and keeps
    its digits. Distances are built in blocks: memory is flat in n.

    Args:
        real: features [n, d]; rows are normalised here.
        synthetic: features [m, d].
        sigma: kernel bandwidth, > 0; the paper's 10.
        scale: factor of the published numbers, 1000.

    Returns:
        The discrepancy, >= 0; 0 for two equal sets.

    Raises:
        ValueError: wrong shapes, a zero row, values that are not finite, sigma <= 0.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    x = unit_rows(feature_matrix(real, name="real"), name="real")
    y = unit_rows(feature_matrix(synthetic, name="synthetic"), name="synthetic")
    same_width(x, y)
    gamma = 1.0 / (2.0 * sigma**2)
    within = _mean_kernel_minus_one(x, x, gamma) + _mean_kernel_minus_one(y, y, gamma)
    # Rounding alone can make two equal sets come out below zero.
    return float(max(scale * (within - 2.0 * _mean_kernel_minus_one(x, y, gamma)), 0.0))


def _mean_kernel_minus_one(a: Matrix, b: Matrix, gamma: float) -> float:
    """Mean over all pairs of exp(-gamma |a_i - b_j|^2) - 1, for unit rows."""
    total = 0.0
    for start in range(0, len(a), BLOCK_ROWS):
        # |a - b|^2 = 2 - 2 a.b for unit vectors.
        squared = np.maximum(2.0 - 2.0 * (a[start : start + BLOCK_ROWS] @ b.T), 0.0)
        total += float(np.expm1(-gamma * squared).sum())
    return total / (len(a) * len(b))
