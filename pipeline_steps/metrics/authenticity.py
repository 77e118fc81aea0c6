"""AuthPct: the share of synthetic images that are no near copies of real ones.

Alaa et al., "How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing
Generative Models", ICML 2022, Section 3.3; as a percentage in Stein et al., NeurIPS 2023.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import feature_rows, same_width
from pipeline_steps.metrics.neighbours import (
    Indices,
    blocks,
    differences,
    exact_radii,
    screened,
    screened_radii,
    screens,
)
from pipeline_steps.metrics.parallel import parallel


def authenticity_percentage(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Percentage of synthetic rows that count as authentic.

    A synthetic row is authentic when it is farther from its nearest real row than that real row is
    from its own nearest real neighbour. Decisions are those of float64 differences.

    Args:
        real: features [n, d], n >= 2: the images that the generator was trained on.
        synthetic: features [m, d], m >= 1.

    Returns:
        In [0, 100]; copies alone give 0.

    Raises:
        ValueError: wrong shapes, too few rows, values that are not finite.
    """
    x = feature_rows(real, name="real", min_rows=2)
    y = feature_rows(synthetic, name="synthetic")
    same_width(x, y)
    real_screen, synthetic_screen = screens(x, y)

    def nearest(rows: slice) -> tuple[Indices, NDArray[np.float64]]:
        """Nearest real row of each synthetic row of a block, and the squared distance to it."""
        block = screened(synthetic_screen, rows, real_screen, slice(0, len(x)))
        limit = block.min(axis=1) + 2.0 * synthetic_screen.tolerance[rows]
        first, second = np.nonzero(block <= limit[:, None])
        exact = differences(y, x, first + rows.start, second)
        order = np.lexsort((second, exact, first))
        winners = order[np.searchsorted(first, np.arange(block.shape[0]))]
        return second[winners], exact[winners]

    found = list(parallel(nearest, blocks(len(y))))
    owner = np.concatenate([part[0] for part in found])
    squared = np.concatenate([part[1] for part in found])
    owners, back = np.unique(owner, return_inverse=True)
    own = exact_radii(real_screen, 1, screened_radii(real_screen, 1), owners)
    return float(100.0 * (squared > own[back]).mean())
