"""Cosine similarities of all pairs in tiles, for `streams`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Rows, feature_rows, same_width, unit_rows

TILE = 1024  # rows and columns of a tile
MARGIN = 1e-5  # by which rounding may take a cosine out of [-1, 1]

Single = NDArray[np.float32]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class CosineTiles:
    """Similarities of the rows of two sets, or of one set with itself.

    Attributes:
        a, b: unit rows in single precision, sorted by identity; the same object for one set.
        a_codes, b_codes: identity of each row, ascending.
        corners: first row and first column of every tile.
    """

    a: Single
    b: Single
    a_codes: Codes
    b_codes: Codes
    corners: tuple[tuple[int, int], ...]
    low: float = -1.0 - MARGIN
    high: float = 1.0 + MARGIN

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.corners)

    def block(self, index: int) -> TileBlock:
        """A tile as a matrix."""
        row, column = self.corners[index]
        rows, columns = slice(row, row + TILE), slice(column, column + TILE)
        return TileBlock(
            scores=self.a[rows] @ self.b[columns].T,
            a_codes=self.a_codes[rows],
            b_codes=self.b_codes[columns],
            diagonal=self.a is self.b and row == column,
        )

    def tile(self, index: int) -> tuple[Single, Single]:
        """All scores of a tile, and the genuine ones among them, both [n]."""
        block = self.block(index)
        scores = block.scores
        first = np.searchsorted(block.b_codes, block.a_codes, side="left")
        last = np.searchsorted(block.b_codes, block.a_codes, side="right")
        if block.diagonal:
            first = np.maximum(first, np.arange(1, len(scores) + 1))
            everything = scores[np.triu_indices(len(scores), 1)]
        else:
            everything = scores.reshape(-1)
        same = [scores[i, first[i] : last[i]] for i in np.flatnonzero(last > first)]
        return everything, np.concatenate(same) if same else np.empty(0, np.float32)


@dataclass(frozen=True)
class TileBlock:
    """Scores of some rows with some columns.

    Attributes:
        scores: [rows, columns].
        a_codes, b_codes: identity of each row and of each column.
        diagonal: rows and columns are the same images: only what lies above the diagonal counts,
            each unordered pair once and no image with itself.
    """

    scores: Single
    a_codes: Codes
    b_codes: Codes
    diagonal: bool


def tiles_between(
    probes: ArrayLike,
    probe_identities: Sequence[str],
    gallery: ArrayLike,
    gallery_identities: Sequence[str],
) -> CosineTiles:
    """Every probe against every gallery image. Arguments as `pairs.compare_between`.

    Raises:
        ValueError: wrong shapes or lengths.
    """
    a, b = feature_rows(probes, name="probe"), feature_rows(gallery, name="gallery")
    same_width(b, a)
    names = np.asarray([*probe_identities, *gallery_identities], dtype=str)
    if len(names) != len(a) + len(b):
        raise ValueError(f"{len(a) + len(b)} embeddings but {len(names)} identity names")
    codes = np.unique(names, return_inverse=True)[1].reshape(-1)
    a_rows, a_codes = _sorted(a, codes[: len(a)], "probe")
    b_rows, b_codes = _sorted(b, codes[len(a) :], "gallery")
    corners = [(i, j) for i in range(0, len(a), TILE) for j in range(0, len(b), TILE)]
    return CosineTiles(a_rows, b_rows, a_codes, b_codes, tuple(corners))


def tiles_within(embeddings: ArrayLike, identities: Sequence[str]) -> CosineTiles:
    """Every unordered pair of two different images of one set.

    Raises:
        ValueError: wrong shape or length.
    """
    rows = feature_rows(embeddings, name="image")
    if len(identities) != len(rows):
        raise ValueError(f"{len(rows)} embeddings but {len(identities)} identity names")
    codes = np.unique(np.asarray(identities, dtype=str), return_inverse=True)[1].reshape(-1)
    a, a_codes = _sorted(rows, codes, "image")
    corners = [(i, j) for i in range(0, len(a), TILE) for j in range(i, len(a), TILE)]
    return CosineTiles(a, a, a_codes, a_codes, tuple(corners))


def _sorted(rows: Rows, codes: Codes, name: str) -> tuple[Single, Codes]:
    """Unit rows in single precision by ascending identity, normalised a block at a time."""
    order = np.argsort(codes, kind="stable")
    unit = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), TILE):
        part = order[start : start + TILE]
        unit[start : start + TILE] = unit_rows(rows[part], name=name)
    return unit, codes[order]
