"""What the metrics share: checked feature matrices, and work on blocks of them in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

Matrix = NDArray[np.float64]
Rows = NDArray[Any]  # float32 or float64
T = TypeVar("T")
R = TypeVar("R")


ROUNDING = 2.0**-20
"""Numbers whose spread, of their size, is no larger are equal: networks compute in float32, and
round otherwise in another batch."""


class Undefined(ValueError):
    """A number that these sets, complete and sound as they are, do not have."""


def feature_rows(values: ArrayLike, *, name: str, min_rows: int = 1) -> Rows:
    """`values` as [n, d], float32 where they are and float64 otherwise, without a needless copy.

    Args:
        values: features [n, d], NumPy or a CPU tensor, any real dtype.
        name: what the rows are, for the error message.
        min_rows: fewest rows that the caller can work with.

    Raises:
        Undefined: too few rows.
        ValueError: not two-dimensional, no column, or a value that is not finite.
    """
    matrix = np.asarray(values)
    if matrix.dtype != np.float32:
        matrix = matrix.astype(np.float64, copy=False)
    if matrix.ndim == 2 and matrix.shape[0] < min_rows:
        raise Undefined(f"{name} features need at least {min_rows} rows, found {matrix.shape[0]}")
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} features must be [n, d] with d >= 1, not {matrix.shape}")
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


def rows_of(names: Sequence[str] | NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    """Rows of each name, ascending, by sorted name: one sort, however many names there are."""
    unique, codes, counts = np.unique(
        np.asarray(names, dtype=str), return_inverse=True, return_counts=True
    )
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    return dict(zip(unique.tolist(), parts, strict=False))


def similarity_to_own(rows: ArrayLike, owners: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Mean similarity of each row to its owner's other rows, and the largest to another owner's.

    Args:
        rows: [n, d], of length 1.
        owners: n names.

    Returns:
        Two arrays [n]; NaN where the owner has fewer than three rows, -1 where there is no other.
    """
    values, names = np.asarray(rows, np.float64), np.asarray(owners)
    _, index, counts = np.unique(names, return_inverse=True, return_counts=True)
    sums = values @ np.stack([values[own].sum(axis=0) for own in rows_of(names).values()]).T
    each = np.arange(len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        own = (sums[each, index] - 1) / (counts[index] - 1)
    means = sums / counts
    means[each, index] = -1.0
    return np.where(counts[index] < 3, np.nan, own), means.max(axis=1)


def blocks(stop: int, size: int, start: int = 0) -> list[slice]:
    """start..stop in blocks of `size`."""
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` over threads: results in order, and only a few of them in memory at a time.

    NumPy lets go of the interpreter while it computes. There are as many threads as matrix products
    may use, OMP_NUM_THREADS or the processor's, and meanwhile each product uses its own alone.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    count = max(1, int(named)) if named.isdigit() else (os.cpu_count() or 1)
    if count == 1:
        yield from map(work, items)
        return
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
