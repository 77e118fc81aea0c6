"""Validation of feature matrices, shared by the metrics."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def feature_matrix(values: ArrayLike, *, name: str, min_rows: int = 1) -> Matrix:
    """A float64 copy-free view of `values` as [n, d].

    Args:
        values: features [n, d], NumPy or a CPU tensor, any real dtype.
        name: what the rows are, for the error message.
        min_rows: fewest rows that the caller can work with.

    Raises:
        ValueError: not two-dimensional, no column, too few rows, or a value that is not finite.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} features must be [n, d] with d >= 1, not {matrix.shape}")
    if matrix.shape[0] < min_rows:
        raise ValueError(f"{name} features need at least {min_rows} rows, found {matrix.shape[0]}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} features hold values that are not finite")
    return matrix


def same_width(real: Matrix, synthetic: Matrix) -> None:
    """Raise ValueError unless both sets have the same number of columns."""
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} columns and synthetic {synthetic.shape[1]}: "
            "they come from different extractors"
        )


def unit_rows(matrix: Matrix, *, name: str) -> Matrix:
    """Rows divided by their L2 norm. Raises ValueError on a zero row."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(f"{name} features hold a zero row, which has no direction")
    return matrix / norms
