"""Genuine and impostor comparisons of face embeddings, few or many.

ID-Booth, Section 4 and Figure 3: cosine similarity of identity features, all genuine pairs, and as
many impostor pairs drawn at random. Here the impostors may also be all of them.

All pairs are gone through in tiles. A small comparison lists their scores. Of a large one they are
*condensed*: rounded to bins and counted, except in those few bins in which the thresholds of the
error rates lie; and neighbours in the order of names form groups. Memory is then that of the
embeddings and the counts, however many pairs there are; whatever reads comparisons reads both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import (
    Rows,
    blocks,
    feature_rows,
    parallel,
    same_width,
    unit_rows,
)

MAX_PAIRS = 5_000_000  # of a comparison that lists them all
OPERATING_POINTS = {"fmr100": 0.01, "fmr1000": 0.001}  # column -> false match rate
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 2048
GROUPS = 40  # of people, in a condensed comparison
BINS, COARSE = 2**17, 2**8  # of scores; so many make one bin far from the thresholds
FINE = 2**21  # bins that are not made coarse, for all pairs of groups together
LOW, HIGH = -1.0 - 1e-5, 1.0 + 1e-5  # rounding may take a cosine out of [-1, 1]

Impostors = Literal["all", "equal"]
Scores = NDArray[np.float64]
Single = NDArray[np.float32]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Similarity scores and who was compared.

    Attributes:
        scores: cosine similarity in [-1, 1], float64 [n].
        first, second: unit of either side, a person or a group of people [n].
        count: how many pairs each score stands for [n]; None: for one.
        sums: sum of the scores and of their squares by pair of units, `first * units + second`,
            where rounded scores don't tell them exactly [2, units * units].
    """

    scores: Scores
    first: Codes
    second: Codes
    count: Codes | None = None
    sums: Scores | None = None


@dataclass(frozen=True)
class Comparison:
    """Genuine and impostor pairs of one experiment.

    Attributes:
        genuine, impostor: the pairs.
        identities: names of the people, sorted.
        groups: number of groups that are the pairs' units; None: each person is one.
    """

    genuine: Pairs
    impostor: Pairs
    identities: tuple[str, ...]
    groups: int | None = None

    @property
    def units(self) -> int:
        """Number of units that may be resampled or left out."""
        return self.groups or len(self.identities)


def compare(
    probes: ArrayLike,
    probe_identities: Sequence[str],
    gallery: ArrayLike | None = None,
    gallery_identities: Sequence[str] | None = None,
    *,
    impostors: Impostors = "all",
    rng: np.random.Generator | None = None,
    keep: int | None = None,
) -> Comparison:
    """Every probe against every gallery image, or every unordered pair of two different probes.

    Args:
        probes: embeddings [n, d]; rows are normalised here.
        probe_identities: one name per row.
        gallery: embeddings [m, d] of other images; None compares the probes among themselves.
        gallery_identities: one name per row of the gallery.
        impostors: "all" pairs of two identities, or "equal": as many as there are genuine ones,
            drawn without replacement (all, when there are fewer).
        rng: generator of that draw; needed for "equal" only.
        keep: a comparison of all pairs that are more than this is condensed; its scores are those
            of single precision. None: none is.

    Raises:
        ValueError: wrong shapes or lengths, or "equal" without a generator.
    """
    within = gallery is None
    a = feature_rows(probes, name="image" if within else "probe")
    b = a if gallery is None else feature_rows(gallery, name="gallery")
    same_width(b, a)
    owners = [*probe_identities, *(() if within else gallery_identities or ())]
    rows = len(a) if within else len(a) + len(b)
    if len(owners) != rows:
        raise ValueError(f"{rows} embeddings but {len(owners)} identity names")
    unique, codes = np.unique(np.asarray(owners, dtype=str), return_inverse=True)
    names = tuple(unique.tolist())
    n_pairs = len(a) * (len(a) - 1) // 2 if within else len(a) * len(b)
    condensed = impostors == "all" and keep is not None and n_pairs > keep
    units = min(GROUPS, len(names)) if condensed else None
    left = _side(a, codes[: len(a)], units, len(names), "image" if within else "probe")
    right = left if within else _side(b, codes[len(a) :], units, len(names), "gallery")
    if units is not None:
        return Comparison(*_counted(left, right, units), names, groups=units)
    if impostors == "all":
        return Comparison(*_listed(left, right, None), names)
    if rng is None:
        raise ValueError("drawing impostors needs a random generator")
    own, other = (np.bincount(side.codes, minlength=len(names)) for side in (left, right))
    genuine = int((own * (own - 1) // 2 if within else own * other).sum())
    chosen: Codes | None = None
    if genuine < n_pairs - genuine:
        chosen = np.sort(rng.choice(n_pairs - genuine, size=genuine, replace=False, shuffle=False))
    return Comparison(*_listed(left, right, chosen), names)


@dataclass(frozen=True)
class _Side:
    """One side of all pairs: rows of length 1 [n, d], their persons [n], and where units begin."""

    rows: Rows
    codes: Codes
    edges: Codes  # [units + 1]


@dataclass(frozen=True)
class _Tile:
    """Some rows of one unit with some columns; `own`: columns of that same unit."""

    unit: int
    rows: slice
    columns: slice
    own: bool


def _side(rows: Rows, codes: Codes, units: int | None, people: int, name: str) -> _Side:
    """Normalised rows: as they come, all one unit; or by ascending person, in single precision."""
    if units is None:
        return _Side(unit_rows(rows, name=name), codes, np.array([0, len(rows)]))
    order = np.argsort(codes, kind="stable")
    unit = np.empty(rows.shape, np.float32)
    for block in blocks(len(rows), BLOCK_ROWS):
        unit[block] = unit_rows(rows[order[block]], name=name)
    edges = np.searchsorted(codes[order] * units // people, np.arange(units + 1))
    return _Side(unit, codes[order], edges)


def _tiles(left: _Side, right: _Side, width: int) -> Iterator[_Tile]:
    """Tiles that hold every pair; of a set with itself, only columns from each unit's own on."""
    for unit in range(len(left.edges) - 1):
        start, stop = right.edges[unit : unit + 2].tolist()
        first, last = left.edges[unit : unit + 2].tolist()
        ranges = [(start, stop, True), (stop, len(right.rows), False)]
        if left is not right:
            ranges.append((0, start, False))
        for rows in blocks(last, BLOCK_ROWS, first):
            for low, high, own in ranges:
                for columns in blocks(high, width, low):
                    yield _Tile(unit, rows, columns, own)


def _scores(left: _Side, right: _Side, tile: _Tile) -> tuple[Rows, tuple[Any, Any]]:
    """Scores of a tile [rows, columns], and which of them are genuine and which impostors."""
    scores = left.rows[tile.rows] @ right.rows[tile.columns].T
    if not tile.own:
        return scores, (slice(0), slice(None))
    same = left.codes[tile.rows, None] == right.codes[None, tile.columns]
    counted = np.ones(scores.shape, bool)
    if left is right:  # each unordered pair once, and no image with itself
        counted = np.triu(counted, tile.rows.start - tile.columns.start + 1)
    return scores, (same & counted, ~same & counted)


def _listed(left: _Side, right: _Side, chosen: Codes | None) -> tuple[Pairs, Pairs]:
    """Genuine and impostor pairs in row-major order; of the impostors those whose numbers, in that
    order, are chosen."""
    found: tuple[list[Any], list[Any]] = [], []
    seen = 0
    for tile in _tiles(left, right, len(right.rows)):
        scores, kinds = _scores(left, right, tile)
        people = left.codes[tile.rows, None], right.codes[None, tile.columns]
        table = np.clip(scores, -1.0, 1.0), *np.broadcast_arrays(*people)
        genuine, impostor = ([column[kind] for column in table] for kind in kinds)
        count = len(impostor[0])
        if chosen is not None:
            low, high = np.searchsorted(chosen, [seen, seen + count])
            impostor = [column[chosen[low:high] - seen] for column in impostor]
        seen += count
        found[0].append(genuine)
        found[1].append(impostor)
    own, other = (Pairs(*map(np.concatenate, zip(*kind, strict=True))) for kind in found)
    return own, other


@dataclass(frozen=True)
class _Rounding:
    """What becomes of the scores of each bin.

    Attributes:
        exact: whether they stay as they are [BINS].
        level: number of the level that they are rounded to otherwise [BINS].
        scores: the score that stands for each level, ascending [levels].
    """

    exact: NDArray[np.bool_]
    level: NDArray[np.int32]
    scores: Scores

    def of(self, scores: Single) -> tuple[Codes, Single, Codes, Scores]:
        """Counts by level, the values that are kept and their counts, sum and sum of squares."""
        scores = scores.reshape(-1)
        at = _bins(scores)
        counts = np.bincount(self.level[at], minlength=len(self.scores))
        # Bins that stay as they are have levels of their own, so these can be emptied again.
        counts[self.level[self.exact]] = 0
        values, value_counts = np.unique(scores[self.exact[at]], return_counts=True)
        squares = np.einsum("i,i->", scores, scores, dtype=np.float64)
        sums = np.array([scores.sum(dtype=np.float64), squares])
        return counts, values, value_counts, sums


def _counted(left: _Side, right: _Side, units: int) -> tuple[Pairs, Pairs]:
    """Genuine and impostor pairs by two passes: one tells where thresholds lie, one counts."""
    tiles = list(_tiles(left, right, BLOCK_COLUMNS))

    def bins(tile: _Tile) -> list[Codes]:
        scores, kinds = _scores(left, right, tile)
        return [np.bincount(_bins(scores[kind]), minlength=BINS) for kind in kinds]

    totals = np.zeros((2, BINS), dtype=np.int64)
    for of_tile in parallel(bins, tiles):
        totals += of_tile
    for name, total in zip(("genuine", "impostor"), totals, strict=True):
        if not total.any():
            raise ValueError(f"there are no {name} scores")
    rounding = _rounding(totals[0], totals[1], units)

    def parts(tile: _Tile) -> list[tuple[int, int, Any]]:
        scores, kinds = _scores(left, right, tile)
        if tile.own:
            pair = tile.unit * (units + 1)
            return [(kind, pair, rounding.of(scores[kinds[kind]])) for kind in (0, 1)]
        edges = np.clip(right.edges, tile.columns.start, tile.columns.stop) - tile.columns.start
        return [
            (1, tile.unit * units + unit, rounding.of(scores[:, slice(*edge)]))
            for unit, edge in enumerate(pairwise(edges.tolist()))
            if edge[0] < edge[1]
        ]

    counts = np.zeros((2, units**2, len(rounding.scores)), dtype=np.int64)
    sums = np.zeros((2, units**2, 2))
    kept: tuple[list[Any], list[Any]] = [], []
    for found in parallel(parts, tiles):
        for kind, pair, (by_level, values, value_counts, of_all) in found:
            counts[kind, pair] += by_level
            sums[kind, pair] += of_all
            kept[kind].append((np.full(len(values), pair), values, value_counts))

    def pairs(kind: int) -> Pairs:
        codes, level = np.nonzero(counts[kind])
        rounded = codes, rounding.scores[level], counts[kind, codes, level]
        code, scores, count = map(np.concatenate, zip(*kept[kind], rounded, strict=True))
        return Pairs(scores, *np.divmod(code, units), count, sums[kind].T)

    return pairs(0), pairs(1)


def _bins(scores: Single) -> NDArray[np.int32]:
    """Bin of each score [n]. It never falls with the score, whatever rounding does."""
    scaled = scores.reshape(-1) - np.float32(LOW)
    scaled *= np.float32(BINS / (HIGH - LOW))
    return scaled.astype(np.int32)


def _rounding(genuine: Codes, impostor: Codes, units: int) -> _Rounding:
    """Bins that stay exact are those between whose edges a threshold of the error rates lies.

    The equal error rate's is the bin in which FMR falls below FNMR. A false match rate's is the bin
    in which FMR falls below it; the threshold with the next higher FMR lies there too, or in the
    bin of the next lower impostor. All other thresholds are only needed at the edges of bins, where
    rounding changes no count.
    """
    fmr = (impostor.sum() - np.concatenate([[0], np.cumsum(impostor)])) / impostor.sum()
    fnmr = np.concatenate([[0], np.cumsum(genuine)]) / genuine.sum()
    crossing = int(np.argmax(fmr <= fnmr)) - 1
    exact = np.zeros(BINS, bool)
    exact[crossing] = True
    for rate in OPERATING_POINTS.values():
        last = int(np.argmax(fmr <= rate)) - 1
        exact[last] = True
        exact[np.flatnonzero(impostor[:last])[-1:]] = True
    numbers = np.arange(BINS)
    starts = numbers % COARSE == 0
    starts |= np.abs(numbers - crossing) <= FINE // (2 * units**2)  # where rates without a unit lie
    starts |= exact
    starts[1:] |= exact[:-1]
    centres = LOW + (numbers + 0.5) * (HIGH - LOW) / BINS
    return _Rounding(exact, (np.cumsum(starts) - 1).astype(np.int32), centres[starts])
