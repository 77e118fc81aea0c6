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

    def tile(self, index: int) -> tuple[Single, Single]:
        """All scores of a tile, and the genuine ones among them, both [n]."""
        row, column = self.corners[index]
        a_codes = self.a_codes[row : row + TILE]
        b_codes = self.b_codes[column : column + TILE]
        block: Single = self.a[row : row + TILE] @ self.b[column : column + TILE].T
        first = np.searchsorted(b_codes, a_codes, side="left")
        last = np.searchsorted(b_codes, a_codes, side="right")
        if self.a is self.b and row == column:
            # Each unordered pair once, and no image with itself.
            first = np.maximum(first, np.arange(1, len(a_codes) + 1))
            everything = block[np.triu_indices(len(block), 1)]
        else:
            everything = block.reshape(-1)
        same = [block[i, first[i] : last[i]] for i in np.flatnonzero(last > first)]
        return everything, np.concatenate(same) if same else np.empty(0, np.float32)


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
