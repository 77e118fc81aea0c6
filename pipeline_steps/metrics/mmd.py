"""Squared maximum mean discrepancy (MMD) with two kernels: CMMD and the kernel distance (KD).

Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation",
CVPR 2024, Eq. 3 and Section 4: a Gaussian kernel on normalised CLIP embeddings.
Binkowski et al., "Demystifying MMD GANs", ICLR 2018, Section 4: a cubic polynomial kernel, called
KID with the Inception-v3 features; with others it is the KD of Stein et al., NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Matrix, Rows, feature_rows, same_width, unit_rows

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


@dataclass(frozen=True)
class KernelDistance:
    """Mean and population standard deviation over subsets; sd is NaN for a single subset."""

    mean: float
    sd: float


def kernel_distance(
    real: ArrayLike,
    synthetic: ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    rng: np.random.Generator,
) -> KernelDistance:
    """Unbiased squared MMD (U-statistic) with k(a, b) = (a.b / d + 1)^3, averaged over subsets.

    A subset draws `subset_size` rows of either set without replacement. Where a set holds no more
    rows than that, both sets are taken whole, once: the mean over all subsets is then meant, which
    is the U-statistic of the whole sets.

    Args:
        real: features [n, d], n >= 2, not normalised.
        synthetic: features [m, d], m >= 2.
        subsets: number of subsets, >= 1; 100 as published.
        subset_size: rows of either set in a subset, >= 2; 1000 as published.
        rng: generator of the draws.

    Returns:
        The distance without the factor 1000 of some tables. It may be below zero, being unbiased.

    Raises:
        ValueError: wrong shapes, fewer than two rows, values that are not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"there is no mean over {subsets} subsets of {subset_size} rows")
    x = feature_rows(real, name="real", min_rows=2)
    y = feature_rows(synthetic, name="synthetic", min_rows=2)
    same_width(x, y)
    if min(len(x), len(y)) <= subset_size:
        whole = _values(x, y, np.ones((len(x), 1)), np.ones((len(y), 1)))
        return KernelDistance(float(whole[0]), float("nan"))
    values: list[float] = []
    for chosen_x, chosen_y in _draws(len(x), len(y), subsets, subset_size, rng):
        # Only rows that a subset of this group holds take part in the products.
        used_x, used_y = (np.flatnonzero(chosen.any(axis=1)) for chosen in (chosen_x, chosen_y))
        values.extend(_values(x[used_x], y[used_y], chosen_x[used_x], chosen_y[used_y]))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _draws(
    n: int, m: int, subsets: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[Matrix, Matrix]]:
    """Membership of rows in subsets, as columns of zeros and ones, in groups of subsets.

    One group of all subsets shares the kernel between them; in sets so large that subsets hardly
    overlap, each subset is cheaper by itself.
    """
    together = subsets if max(n, m) <= size * np.sqrt(subsets) else 1
    for start in range(0, subsets, together):
        count = min(together, subsets - start)
        chosen = np.zeros((n, count)), np.zeros((m, count))
        for column in range(count):
            for membership, rows in zip(chosen, (n, m), strict=True):
                membership[rng.choice(rows, size=size, replace=False), column] = 1.0
        yield chosen


def _values(x: Rows, y: Rows, chosen_x: Matrix, chosen_y: Matrix) -> NDArray[np.float64]:
    """The U-statistic of every subset, [subsets]."""
    n, m = chosen_x.sum(axis=0), chosen_y.sum(axis=0)
    within_x = (_sums(x, x, chosen_x, chosen_x) - _diagonal(x) @ chosen_x) / (n * (n - 1.0))
    within_y = (_sums(y, y, chosen_y, chosen_y) - _diagonal(y) @ chosen_y) / (m * (m - 1.0))
    return np.asarray(within_x + within_y - 2.0 * _sums(x, y, chosen_x, chosen_y) / (n * m))


def _sums(a: Rows, b: Rows, chosen_a: Matrix, chosen_b: Matrix) -> NDArray[np.float64]:
    """Sum of the kernel over the pairs of every subset, in blocks of the kernel matrix."""
    total = np.zeros(chosen_a.shape[1])
    for start in range(0, len(a), BLOCK_ROWS):
        rows = np.asarray(a[start : start + BLOCK_ROWS], dtype=np.float64)
        for other in range(0, len(b), BLOCK_ROWS):
            columns = np.asarray(b[other : other + BLOCK_ROWS], dtype=np.float64)
            kernel = (rows @ columns.T / a.shape[1] + 1.0) ** 3
            partial = kernel @ chosen_b[other : other + BLOCK_ROWS]
            total += np.einsum("ij,ij->j", chosen_a[start : start + BLOCK_ROWS], partial)
    return total


def _diagonal(rows: Rows) -> NDArray[np.float64]:
    """k(a, a) of every row."""
    squared = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return np.asarray((squared / rows.shape[1] + 1.0) ** 3)
