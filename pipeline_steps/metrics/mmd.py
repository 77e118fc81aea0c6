"""CLIP maximum mean discrepancy (CMMD).

Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation",
CVPR 2024, Eq. 3 and Section 4: squared MMD with a Gaussian kernel on normalised CLIP embeddings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline_steps.metrics.arrays import Rows, feature_rows, same_width, unit_rows

BLOCK_ROWS = 1024


def cmmd(
    real: ArrayLike, synthetic: ArrayLike, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """Squared MMD between L2-normalised rows, biased (V-statistic) estimator as published.

    scale * (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)), k(a, b) = exp(-|a - b|^2 / 2 sigma^2),
    each mean over all pairs, a row with itself included. Every kernel value lies near 1 for
    sigma = 10, so the means are taken of k - 1 (expm1), which leaves the result the same and keeps
    its digits. The kernel is built in square blocks, in double precision: beside the features
    themselves a few blocks of memory are used, however many rows there are.

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
    x, y = feature_rows(real, name="real"), feature_rows(synthetic, name="synthetic")
    same_width(x, y)
    gamma = 1.0 / (2.0 * sigma**2)
    within = _mean_within(x, "real", gamma) + _mean_within(y, "synthetic", gamma)
    # Rounding alone can make two equal sets come out below zero.
    return float(max(scale * (within - 2.0 * _mean_between(x, y, gamma)), 0.0))


def _mean_within(rows: Rows, name: str, gamma: float) -> float:
    """Mean over all ordered pairs of k - 1; each unordered pair of blocks is visited once."""
    total = 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        a = unit_rows(rows[start : start + BLOCK_ROWS], name=name)
        total += _sum_kernel_minus_one(a, a, gamma)
        for other in range(start + BLOCK_ROWS, len(rows), BLOCK_ROWS):
            b = unit_rows(rows[other : other + BLOCK_ROWS], name=name)
            total += 2.0 * _sum_kernel_minus_one(a, b, gamma)
    return total / len(rows) ** 2


def _mean_between(x: Rows, y: Rows, gamma: float) -> float:
    """Mean over all pairs of k(x, y) - 1."""
    total = 0.0
    for start in range(0, len(x), BLOCK_ROWS):
        a = unit_rows(x[start : start + BLOCK_ROWS], name="real")
        for other in range(0, len(y), BLOCK_ROWS):
            b = unit_rows(y[other : other + BLOCK_ROWS], name="synthetic")
            total += _sum_kernel_minus_one(a, b, gamma)
    return total / (len(x) * len(y))


def _sum_kernel_minus_one(a: Rows, b: Rows, gamma: float) -> float:
    """Sum over all pairs of exp(-gamma |a_i - b_j|^2) - 1, for unit rows."""
    # |a - b|^2 = 2 - 2 a.b for unit vectors.
    squared = a @ b.T
    squared *= -2.0
    squared += 2.0
    np.maximum(squared, 0.0, out=squared)
    squared *= -gamma
    return float(np.expm1(squared, out=squared).sum())
