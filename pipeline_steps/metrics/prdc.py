"""Nearest neighbours: precision, recall, density, coverage, and the share of authentic images.

Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, Eq. 1-2. Density and coverage: Naeem et al., "Reliable Fidelity
and Diversity Metrics for Generative Models", ICML 2020, Eq. 3-4. AuthPct: Alaa et al., "How
Faithful is your Synthetic Data?", ICML 2022, Section 3.3; as a percentage in Stein et al., NeurIPS
2023.

Distances come in blocks of float32 products, whose rounding errors are bounded; whatever lies
within the bound of a decision is computed again from float64 differences, so every decision is that
of float64 differences, at the speed of single precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import (
    ROUNDING,
    Rows,
    Undefined,
    blocks,
    feature_rows,
    parallel,
    same_width,
)

TILE = 1024  # rows of a block of distances
CHUNK = 4096  # pairs whose differences are formed at once
UNIT = 2.0**-24  # unit roundoff of float32
# The error of an inner product of d terms exceeds CERTAINTY sqrt(d) UNIT |a| |b| with a probability
# below 1e-13 (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SISC
# 2019, Theorem 3.1).
CERTAINTY = 8.0

Double = NDArray[np.float64]
Indices = NDArray[np.intp]


def precision_recall(real: ArrayLike, synthetic: ArrayLike, k: int = 3) -> dict[str, float]:
    """Fidelity and diversity of a synthetic set against a real one.

    Each set's manifold is the union of balls around its rows, with the distance to the k-th nearest
    other row of the same set as radius. A point on a ball's surface is inside (Kynkäänniemi's <=),
    so copies of a row count as covered.

    - precision: share of synthetic rows inside the real manifold
    - recall: share of real rows inside the synthetic manifold
    - density: mean number of real balls around a synthetic row, divided by k (may exceed 1)
    - coverage: share of real balls that hold a synthetic row

    Args:
        real: features [n, d], n > k.
        synthetic: features [m, d], m > k.
        k: neighbours, >= 1; 3 in the paper's precision and recall, 5 in the PRDC papers.

    Raises:
        Undefined: a set with k rows or fewer, or real rows that are all equal.
        ValueError: wrong shapes, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    x, y = _screens(real, synthetic, min_rows=k + 1)
    real_radii, synthetic_radii = _neighbours(x, x, k)[0], _neighbours(y, y, k)[0]

    def compare(rows: slice) -> tuple[Any, Any, Any]:
        squared = _squared(x, rows, y)
        in_real = _inside(squared, real_radii[rows, None], x, rows, y)
        in_synthetic = _inside(squared, synthetic_radii[None, :], x, rows, y)
        return np.count_nonzero(in_real, axis=0), in_real.any(axis=1), in_synthetic.any(axis=1)

    around, covered, recalled = zip(*parallel(compare, blocks(len(x.rows), TILE)), strict=True)
    balls = np.sum(around, axis=0)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(np.concatenate(recalled).mean()),
        "density": float(balls.mean() / k),
        "coverage": float(np.concatenate(covered).mean()),
    }


def authenticity_percentage(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Percentage of synthetic rows that are no near copies of real ones.

    A synthetic row is authentic when it is farther from its nearest real row than that real row is
    from its own nearest real neighbour.

    Args:
        real: features [n, d], n >= 2: the images that the generator was trained on.
        synthetic: features [m, d], m >= 1.

    Returns:
        In [0, 100]; copies alone give 0.

    Raises:
        Undefined: too few rows, or real rows that are all equal.
        ValueError: wrong shapes, values that are not finite.
    """
    x, y = _screens(real, synthetic, min_rows=2, min_synthetic=1)
    squared, owners = _neighbours(y, x, 1)
    return float(100.0 * (squared > _neighbours(x, x, 1)[0][owners]).mean())


@dataclass(frozen=True)
class _Screen:
    """A set of rows with what screening in single precision needs.

    Attributes:
        rows: the rows as they came [n, d].
        low: the rows about a centre, float32 [n, d]. A common shift changes no distance and keeps
            the digits of |a|^2 - 2 a.b + |b|^2.
        squared: |low|^2, float32 [n].
        tolerance: largest error of a screened squared distance from each row [n].
    """

    rows: Rows
    low: NDArray[np.float32]
    squared: NDArray[np.float32]
    tolerance: Double


def _screens(
    real: ArrayLike, synthetic: ArrayLike, *, min_rows: int, min_synthetic: int | None = None
) -> list[_Screen]:
    """Both sets, checked, about the mean of the first."""
    x = feature_rows(real, name="real", min_rows=min_rows)
    y = feature_rows(synthetic, name="synthetic", min_rows=min_synthetic or min_rows)
    same_width(x, y)
    if np.ptp(x, axis=0).max() <= ROUNDING * np.abs(x).max():
        raise Undefined("all real features are equal")
    shift = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    lows = [(rows - shift).astype(np.float32, copy=False) for rows in (x, y)]
    squares = [np.einsum("ij,ij->i", low, low, dtype=np.float64) for low in lows]
    longest = np.sqrt(max(float(squared.max()) for squared in squares))
    # 2 |a| |b| <= (|a| + |b|)^2 / 2 for the product; the rest from rounding rows, norms and sums.
    factor = UNIT * (CERTAINTY * np.sqrt(x.shape[1]) / 2.0 + 12.0)
    return [
        _Screen(rows, low, s.astype(np.float32), factor * np.square(np.sqrt(s) + longest))
        for rows, low, s in zip((x, y), lows, squares, strict=True)
    ]


def _squared(a: _Screen, rows: slice, b: _Screen) -> NDArray[np.float32]:
    """Screened squared distances of some rows of a to all of b; may be slightly below zero."""
    block: NDArray[np.float32] = a.low[rows] @ b.low.T
    block *= -2.0
    block += b.squared
    block += a.squared[rows, None]
    return block


def _exact(a: _Screen, first: Indices, b: _Screen, second: Indices) -> Double:
    """Squared distances of pairs of rows by float64 differences, [pairs]."""
    result = np.empty(len(first))
    for part in blocks(len(first), CHUNK):
        gap = a.rows[first[part]].astype(np.float64) - b.rows[second[part]]
        result[part] = np.einsum("ij,ij->i", gap, gap)
    return result


def _neighbours(a: _Screen, b: _Screen, k: int) -> tuple[Double, Indices]:
    """Squared distance of each row of a to its k-th nearest (other) row of b, and which, [n]."""

    def work(rows: slice) -> tuple[Double, Indices]:
        block = _squared(a, rows, b)
        if a is b:
            block[np.arange(len(block)), np.arange(len(b.rows))[rows]] = np.inf
        # The k-th nearest row lies among those within the error of both numbers.
        limit = np.partition(block, k - 1, axis=1)[:, k - 1] + 2.0 * a.tolerance[rows]
        first, second = np.nonzero(block <= limit[:, None])
        exact = _exact(a, first + rows.start, b, second)
        order = np.lexsort((second, exact, first))
        chosen = order[np.searchsorted(first, np.arange(len(block))) + k - 1]
        return exact[chosen], second[chosen]

    squared, nearest = zip(*parallel(work, blocks(len(a.rows), TILE)), strict=True)
    return np.concatenate(squared), np.concatenate(nearest)


def _inside(
    squared: NDArray[np.float32], radii: Double, a: _Screen, rows: slice, b: _Screen
) -> NDArray[np.bool_]:
    """Which pairs of a block are no farther apart than squared radii that broadcast to it."""
    slack = float(a.tolerance[rows].max())
    inside = squared <= (radii - slack).astype(np.float32)
    maybe = squared <= (radii + slack).astype(np.float32)
    first, second = np.nonzero(maybe & ~inside)
    limits = np.broadcast_to(radii, squared.shape)[first, second]
    inside[first, second] = _exact(a, first + rows.start, b, second) <= limits
    return inside
