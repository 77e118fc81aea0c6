"""Precision, recall, density and coverage on k-nearest-neighbour manifolds.

Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, Eq. 1-2. Density and coverage: Naeem et al., "Reliable Fidelity
and Diversity Metrics for Generative Models", ICML 2020, Eq. 3-4.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Matrix, feature_matrix, same_width

BLOCK_ROWS = 1024


def precision_recall(real: ArrayLike, synthetic: ArrayLike, k: int = 3) -> dict[str, float]:
    """Fidelity and diversity of a synthetic set against a real one.

    Each set's manifold is the union of balls around its rows, with the distance to the k-th nearest
    other row of the same set as radius. A point on a ball's surface is inside (Kynkäänniemi's <=),
    so copies of a row count as covered.

    - precision: share of synthetic rows inside the real manifold
    - recall: share of real rows inside the synthetic manifold
    - density: mean number of real balls around a synthetic row, divided by k (may exceed 1)
    - coverage: share of real balls that hold a synthetic row

    Distances are built in blocks of rows: memory is O(block x n), never n x m.

    Args:
        real: features [n, d], n > k.
        synthetic: features [m, d], m > k.
        k: neighbours, >= 1; 3 in the paper's precision and recall, 5 in the PRDC papers.

    Raises:
        ValueError: wrong shapes, k < 1, or a set with k rows or fewer.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    x = feature_matrix(real, name="real", min_rows=k + 1)
    y = feature_matrix(synthetic, name="synthetic", min_rows=k + 1)
    same_width(x, y)
    # A common shift changes no distance and keeps the digits of |a|^2 - 2 a.b + |b|^2.
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    real_radii = _squared_radii(x, k)
    synthetic_radii = _squared_radii(y, k)

    real_balls_around = np.zeros(len(y), dtype=np.int64)
    recalled = np.zeros(len(x), dtype=bool)
    covered = np.zeros(len(x), dtype=bool)
    for rows, squared in _squared_distances(x, y):
        inside_real = squared <= real_radii[rows, None]
        real_balls_around += inside_real.sum(axis=0)
        covered[rows] = inside_real.any(axis=1)
        recalled[rows] = (squared <= synthetic_radii).any(axis=1)
    return {
        "precision": float((real_balls_around > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(real_balls_around.mean() / k),
        "coverage": float(covered.mean()),
    }


def _squared_radii(rows: Matrix, k: int) -> NDArray[np.float64]:
    """Squared distance of each row to its k-th nearest other row, [n]."""
    radii = np.empty(len(rows))
    for block, squared in _squared_distances(rows, rows):
        # A row is no neighbour of itself, however rounding treats its own distance.
        squared[np.arange(squared.shape[0]), np.arange(block.start, block.stop)] = np.inf
        radii[block] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def _squared_distances(a: Matrix, b: Matrix) -> Iterator[tuple[slice, Matrix]]:
    """Blocks of rows of the squared Euclidean distance matrix, >= 0."""
    b_squared = np.einsum("ij,ij->i", b, b)
    for start in range(0, len(a), BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, len(a)))
        rows = a[block]
        squared = np.einsum("ij,ij->i", rows, rows)[:, None] + b_squared - 2.0 * (rows @ b.T)
        yield block, np.maximum(squared, 0.0, out=squared)
