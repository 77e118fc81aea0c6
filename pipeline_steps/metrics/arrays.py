"""Validation of feature matrices, shared by the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
Rows = NDArray[Any]  # float32 or float64


def feature_rows(values: ArrayLike, *, name: str, min_rows: int = 1) -> Rows:
    """`values` as [n, d], float32 where they are and float64 otherwise, without a needless copy.

    Args:
        values: features [n, d], NumPy or a CPU tensor, any real dtype.
        name: what the rows are, for the error message.
        min_rows: fewest rows that the caller can work with.

    Raises:
        ValueError: not two-dimensional, no column, too few rows, or a value that is not finite.
    """
    matrix = np.asarray(values)
    if matrix.dtype != np.float32:
        matrix = matrix.astype(np.float64, copy=False)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} features must be [n, d] with d >= 1, not {matrix.shape}")
    if matrix.shape[0] < min_rows:
        raise ValueError(f"{name} features need at least {min_rows} rows, found {matrix.shape[0]}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} features hold values that are not finite")
    return matrix


def feature_matrix(values: ArrayLike, *, name: str, min_rows: int = 1) -> Matrix:
    """`feature_rows` in float64."""
    return feature_rows(values, name=name, min_rows=min_rows).astype(np.float64, copy=False)


def same_width(real: Rows, synthetic: Rows) -> None:
    """Raise ValueError unless both sets have the same number of columns."""
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} columns and synthetic {synthetic.shape[1]}: "
            "they come from different extractors"
        )


def unit_rows(matrix: Rows, *, name: str) -> Matrix:
    """Rows divided by their L2 norm, float64. Raises ValueError on a zero row."""
    rows = np.asarray(matrix, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(f"{name} features hold a zero row, which has no direction")
    return rows / norms
