"""Nearest neighbours in blocks: screened in single precision, decided as in double precision.

A product of float32 matrices is several times as fast as distances in float64, but rounds. Here its
rounding error is bounded, and whatever lies within the bound is computed again from the differences
in float64, so that decisions are those of float64 differences. The bound of an inner product of d
terms is 8 sqrt(d) u |a| |b|: rounding errors exceed it with a probability below 1e-13 (Higham and
Mary, "A New Approach to Probabilistic Rounding Error Analysis", SISC 2019, Theorem 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.metrics.arrays import Rows
from pipeline_steps.metrics.parallel import parallel

TILE = 1024  # rows and columns of a block of distances
CHUNK = 4096  # pairs whose differences are formed at once
UNIT = 2.0**-24  # unit roundoff of float32
CERTAINTY = 8.0  # lambda of the bound

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Screen:
    """A set of rows with what the screening needs.

    Attributes:
        rows: the rows as they came [n, d].
        low: the rows about a centre [n, d]. A common shift changes no distance and keeps the digits
            of |a|^2 - 2 a.b + |b|^2.
        squared: |low|^2 [n].
        tolerance: largest error of a screened squared distance from this row [n].
    """

    rows: Rows
    low: Single
    squared: Single
    tolerance: Double

    def __len__(self) -> int:
        return len(self.rows)


def screens(*sets: Rows) -> tuple[Screen, ...]:
    """Screens of sets of rows with equal width, about the mean of the first set."""
    centre = sets[0].mean(axis=0, dtype=np.float64)
    shift = centre.astype(np.float32)  # one and the same for all sets, whatever their precision
    lows = [(rows - shift).astype(np.float32, copy=False) for rows in sets]
    squares = [np.einsum("ij,ij->i", low, low, dtype=np.float64) for low in lows]
    norms = [np.sqrt(squared) for squared in squares]
    longest = max(float(norm.max()) for norm in norms)
    # 2 |a| |b| <= (|a| + |b|)^2 / 2 for the product; the rest from rounding rows, norms and sums.
    factor = UNIT * (CERTAINTY * np.sqrt(sets[0].shape[1]) / 2.0 + 12.0)
    return tuple(
        Screen(rows, low, squared.astype(np.float32), factor * np.square(norm + longest))
        for rows, low, squared, norm in zip(sets, lows, squares, norms, strict=True)
    )


def screened(a: Screen, rows: slice | Indices, b: Screen, columns: slice) -> Single:
    """Squared distances in single precision, [rows, columns]; may be slightly below zero."""
    block: Single = np.matmul(a.low[rows], b.low[columns].T)
    block *= -2.0
    block += b.squared[columns]
    block += a.squared[rows, None]
    return block


def blocks(n: int) -> list[slice]:
    """0..n in blocks of `TILE`."""
    edges = [*range(0, n, TILE), n]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def differences(a: Rows, b: Rows, first: Indices, second: Indices) -> Double:
    """Squared distances of pairs of rows in float64, [pairs]."""
    result = np.empty(len(first))
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        gap = a[first[part]].astype(np.float64) - b[second[part]]
        result[part] = np.einsum("ij,ij->i", gap, gap)
    return result


def screened_radii(screen: Screen, k: int) -> Single:
    """Screened squared distance of each row to its k-th nearest other row, [n].

    Each pair of blocks is multiplied once and serves the rows of both.
    """
    parts = blocks(len(screen))
    tiles = [(i, j) for i in range(len(parts)) for j in range(i, len(parts))]

    def nearest(tile: tuple[int, int]) -> tuple[Single, Single | None]:
        i, j = tile
        block = screened(screen, parts[i], screen, parts[j])
        if i == j:
            np.fill_diagonal(block, np.inf)  # a row is no neighbour of itself
            return _smallest(block, k), None
        return _smallest(block, k), _smallest(np.ascontiguousarray(block.T), k)

    found: list[list[Single]] = [[] for _ in parts]
    for (i, j), (of_rows, of_columns) in zip(tiles, parallel(nearest, tiles), strict=True):
        found[i].append(of_rows)
        if of_columns is not None:
            found[j].append(of_columns)
    return np.concatenate(
        [np.partition(np.hstack(rows), k - 1, axis=1)[:, k - 1] for rows in found]
    )


def exact_radii(screen: Screen, k: int, approximate: Single, rows: Indices) -> Double:
    """Squared distance in float64 of some rows to their k-th nearest other row, [rows].

    Args:
        screen: the set.
        k: neighbours.
        approximate: `screened_radii` of the set [n].
        rows: which rows.
    """
    radii = np.empty(len(rows))
    for part in blocks(len(rows)):
        chosen = rows[part]
        block = screened(screen, chosen, screen, slice(0, len(screen)))
        block[np.arange(len(chosen)), chosen] = np.inf
        # The k-th nearest row lies among those within the error of both numbers.
        limit = approximate[chosen] + 2.0 * screen.tolerance[chosen]
        first, second = np.nonzero(block <= limit[:, None])
        exact = differences(screen.rows, screen.rows, chosen[first], second)
        order = np.lexsort((exact, first))
        starts = np.searchsorted(first, np.arange(len(chosen)))
        radii[part] = exact[order][starts + k - 1]
    return radii


def _smallest(block: Single, k: int) -> Single:
    """The k smallest entries of each row, or the whole row where it is shorter."""
    if block.shape[1] <= k:
        return block
    return np.partition(block, k - 1, axis=1)[:, :k].copy()
