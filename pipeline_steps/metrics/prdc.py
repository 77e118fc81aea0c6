"""Precision, recall, density and coverage on k-nearest-neighbour manifolds.

Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, Eq. 1-2. Density and coverage: Naeem et al., "Reliable Fidelity
and Diversity Metrics for Generative Models", ICML 2020, Eq. 3-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import feature_rows, same_width
from pipeline_steps.metrics.neighbours import (
    Indices,
    Screen,
    Single,
    blocks,
    differences,
    exact_radii,
    screened,
    screened_radii,
    screens,
)
from pipeline_steps.metrics.parallel import parallel


def precision_recall(real: ArrayLike, synthetic: ArrayLike, k: int = 3) -> dict[str, float]:
    """Fidelity and diversity of a synthetic set against a real one.

    Each set's manifold is the union of balls around its rows, with the distance to the k-th nearest
    other row of the same set as radius. A point on a ball's surface is inside (Kynkäänniemi's <=),
    so copies of a row count as covered.

    - precision: share of synthetic rows inside the real manifold
    - recall: share of real rows inside the synthetic manifold
    - density: mean number of real balls around a synthetic row, divided by k (may exceed 1)
    - coverage: share of real balls that hold a synthetic row

    Distances are built in blocks: memory is O(block x n), never n x m. They are screened in single
    precision, and decided as float64 differences decide (see `neighbours`).

    Args:
        real: features [n, d], n > k.
        synthetic: features [m, d], m > k.
        k: neighbours, >= 1; 3 in the paper's precision and recall, 5 in the PRDC papers.

    Raises:
        ValueError: wrong shapes, k < 1, or a set with k rows or fewer.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    x = feature_rows(real, name="real", min_rows=k + 1)
    y = feature_rows(synthetic, name="synthetic", min_rows=k + 1)
    same_width(x, y)
    real_screen, synthetic_screen = screens(x, y)
    real_radii = screened_radii(real_screen, k)
    synthetic_radii = screened_radii(synthetic_screen, k)

    def compare(rows: slice) -> _Decided:
        squared = screened(real_screen, rows, synthetic_screen, slice(0, len(y)))
        in_real, open_real = _decide(squared, real_radii, real_screen, rows, axis=0)
        in_synthetic, open_synthetic = _decide(
            squared, synthetic_radii, synthetic_screen, slice(0, len(y)), axis=1
        )
        recalled = np.asarray(in_synthetic.any(axis=1))
        # A real row that is surely in some ball needs no further proof.
        open_synthetic[recalled] = False
        return _Decided(
            around=np.count_nonzero(in_real, axis=0),
            covered=np.asarray(in_real.any(axis=1)),
            recalled=recalled,
            open_real=_positions(open_real, rows.start),
            open_synthetic=_positions(open_synthetic, rows.start),
        )

    decided = list(parallel(compare, blocks(len(x))))
    around = np.sum([part.around for part in decided], axis=0)
    covered = np.concatenate([part.covered for part in decided])
    recalled = np.concatenate([part.recalled for part in decided])

    pairs = np.concatenate([part.open_real for part in decided])
    squared = differences(x, y, pairs[:, 0], pairs[:, 1])
    inside = pairs[squared <= _exact(real_screen, k, real_radii, pairs[:, 0])]
    np.add.at(around, inside[:, 1], 1)
    covered[inside[:, 0]] = True

    pairs = np.concatenate([part.open_synthetic for part in decided])
    squared = differences(x, y, pairs[:, 0], pairs[:, 1])
    inside = pairs[squared <= _exact(synthetic_screen, k, synthetic_radii, pairs[:, 1])]
    recalled[inside[:, 0]] = True
    return {
        "precision": float((around > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(around.mean() / k),
        "coverage": float(covered.mean()),
    }


@dataclass(frozen=True)
class _Decided:
    """What single precision settles about a block of real rows, and what it leaves open.

    Attributes:
        around: number of the block's balls around each synthetic row [m].
        covered: whether a ball holds a synthetic row [b].
        recalled: whether a real row lies in a synthetic ball [b].
        open_real: pairs (real row, synthetic row) close to the surface of the real row's ball.
        open_synthetic: the same of the synthetic row's ball, of rows not yet recalled.
    """

    around: NDArray[np.intp]
    covered: NDArray[np.bool_]
    recalled: NDArray[np.bool_]
    open_real: Indices
    open_synthetic: Indices


def _decide(
    squared: Single, radii: Single, balls: Screen, which: slice, *, axis: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs are surely inside the balls along an axis of `squared`, and which are open."""
    # The distance and the radius may each be off by the tolerance.
    slack = 2.0 * balls.tolerance[which]
    low, high = radii[which] - slack, radii[which] + slack
    shape = (-1, 1) if axis == 0 else (1, -1)
    inside = squared <= low.astype(np.float32).reshape(shape)
    return inside, (squared <= high.astype(np.float32).reshape(shape)) & ~inside


def _positions(mask: NDArray[np.bool_], first_row: int) -> Indices:
    """Where a mask with few true entries is true, [pairs, 2], rows counted from `first_row`."""
    some = np.flatnonzero(mask.any(axis=1))
    found = np.argwhere(mask[some])
    return np.column_stack([some[found[:, 0]] + first_row, found[:, 1]])


def _exact(balls: Screen, k: int, approximate: Single, rows: Indices) -> NDArray[np.float64]:
    """Squared radii in float64 of the balls of some rows, which may repeat."""
    unique, back = np.unique(rows, return_inverse=True)
    return exact_radii(balls, k, approximate, unique)[back]
