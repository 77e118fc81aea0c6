"""Genuine and impostor comparisons of face embeddings, few or many.

ID-Booth, Section 4 and Figure 3: cosine similarity of identity features, all genuine pairs, and as
many impostor pairs drawn at random. Here the impostors may also be all of them.

A small comparison lists every pair. Of a large one the scores are *condensed*: rounded to bins and
counted, except in those few bins in which the thresholds of the error rates lie; and neighbours in
the order of names form groups. Every function on comparisons serves both. Memory is then that of
the embeddings and the counts, however many pairs there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import (
    Matrix,
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
    unique, inverse = np.unique(np.asarray(owners, dtype=str), return_inverse=True)
    names, codes = tuple(unique.tolist()), inverse.astype(np.int64).reshape(-1)
    a_codes, b_codes = codes[: len(a)], codes if within else codes[len(a) :]
    n_pairs = len(a) * (len(a) - 1) // 2 if within else len(a) * len(b)
    if impostors == "all" and keep is not None and n_pairs > keep:
        return _condensed(a, a_codes, b, b_codes, names)
    unit_a = unit_rows(a, name="image" if within else "probe")
    unit_b = unit_a if within else unit_rows(b, name="gallery")
    chosen: Codes | None = None
    if impostors == "equal":
        if rng is None:
            raise ValueError("drawing impostors needs a random generator")
        own = np.bincount(a_codes, minlength=len(names))
        other = np.bincount(b_codes, minlength=len(names))
        genuine = int((own * (own - 1) // 2 if within else own * other).sum())
        if genuine < n_pairs - genuine:
            drawn = rng.choice(n_pairs - genuine, size=genuine, replace=False, shuffle=False)
            chosen = np.sort(drawn)
    return _listed(_all_pairs(unit_a, a_codes, unit_b, b_codes), chosen, names)


def _listed(
    parts: Iterable[tuple[Scores, Codes, Codes]], chosen: Codes | None, names: tuple[str, ...]
) -> Comparison:
    """All pairs, or of the impostors those whose numbers, in order, are chosen."""
    found: tuple[list[tuple[Any, ...]], ...] = [], []
    seen = 0
    for scores, first, second in parts:
        same = first == second
        different = np.flatnonzero(~same)
        count = len(different)
        if chosen is not None:
            low, high = np.searchsorted(chosen, [seen, seen + count])
            different = different[chosen[low:high] - seen]
        seen += count
        for kind, rows in zip(found, (same, different), strict=True):
            kind.append((scores[rows], first[rows], second[rows]))
    genuine, impostor = (Pairs(*map(np.concatenate, zip(*kind, strict=True))) for kind in found)
    return Comparison(genuine, impostor, names)


def _all_pairs(
    a: Matrix, a_codes: Codes, b: Matrix, b_codes: Codes
) -> Iterator[tuple[Scores, Codes, Codes]]:
    """Scores and both people of all pairs in row-major order, a block of rows at a time."""
    for rows in blocks(len(a), BLOCK_ROWS):
        similarity = np.clip(a[rows] @ b.T, -1.0, 1.0)
        counted = np.ones(similarity.shape, bool)
        if a is b:
            counted = np.triu(counted, rows.start + 1)
        row, column = np.nonzero(counted)
        yield similarity[row, column], a_codes[rows][row], b_codes[column]


# Condensed comparisons -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """One side of all pairs, by ascending person."""

    rows: Single  # of length 1 [n, d]
    codes: Codes  # the persons [n]
    edges: Codes  # where the rows of each unit begin [units + 1]


@dataclass(frozen=True)
class _Tile:
    """Scores of some rows of one unit with some columns; `own`: columns of that same unit."""

    unit: int
    rows: slice
    columns: slice
    own: bool


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


class _Counts:
    """Scores of one kind by pairs of units: counted by level, or kept as they are."""

    def __init__(self, units: int, rounding: _Rounding) -> None:
        self.units, self.rounding = units, rounding
        self.counts: dict[int, Codes] = defaultdict(
            lambda: np.zeros(len(rounding.scores), dtype=np.int64)
        )
        self.kept: list[tuple[int, Single, Codes]] = []
        self.sums = np.zeros((2, units * units))

    def add(self, pair: int, part: _Part) -> None:
        """Take in some scores of a pair of units."""
        self.counts[pair] += part.counts
        self.sums[:, pair] += part.sums
        if len(part.values):
            self.kept.append((pair, part.values, part.value_counts))

    def pairs(self) -> Pairs:
        """All that was taken in."""
        found = [(pair, values.astype(np.float64), count) for pair, values, count in self.kept]
        for pair, counts in self.counts.items():
            at = np.flatnonzero(counts)
            found.append((pair, self.rounding.scores[at], counts[at]))
        codes, scores, count = zip(*found, strict=True)
        code = np.repeat(codes, [len(part) for part in scores])
        first, second = np.divmod(code, self.units)
        return Pairs(np.concatenate(scores), first, second, np.concatenate(count), self.sums)


@dataclass(frozen=True)
class _Part:
    """Some scores: counts by level, the values that are kept with their counts, and the sums."""

    counts: Codes
    values: Single
    value_counts: Codes
    sums: Scores


def _condensed(
    a: Rows, a_codes: Codes, b: Rows, b_codes: Codes, names: tuple[str, ...]
) -> Comparison:
    """All pairs by two passes over tiles: one tells where the thresholds lie, one counts."""
    within, units = a is b, min(GROUPS, len(names))
    left = _side(a, a_codes, units, len(names), "image" if within else "probe")
    right = left if within else _side(b, b_codes, units, len(names), "gallery")
    tiles = list(_tiles(left, right, units))

    def bins(tile: _Tile) -> list[Codes]:
        return [np.bincount(_bins(scores), minlength=BINS) for scores in _scores(left, right, tile)]

    genuine, impostor = np.zeros((2, BINS), dtype=np.int64)
    for of_genuine, of_impostor in parallel(bins, tiles):
        genuine += of_genuine
        impostor += of_impostor
    for name, found in (("genuine", genuine), ("impostor", impostor)):
        if not found.any():
            raise ValueError(f"there are no {name} scores")
    rounding = _rounding(genuine, impostor, units)

    def parts(tile: _Tile) -> list[tuple[bool, int, _Part]]:
        own, other = _scores(left, right, tile)
        if tile.own:
            pair = tile.unit * (units + 1)
            return [(True, pair, _part(own, rounding)), (False, pair, _part(other, rounding))]
        edges = np.clip(right.edges, tile.columns.start, tile.columns.stop) - tile.columns.start
        return [
            (False, tile.unit * units + unit, _part(other[:, slice(*edge)], rounding))
            for unit, edge in enumerate(pairwise(edges.tolist()))
            if edge[0] < edge[1]
        ]

    counted = {True: _Counts(units, rounding), False: _Counts(units, rounding)}
    for found_parts in parallel(parts, tiles):
        for is_genuine, pair, part in found_parts:
            counted[is_genuine].add(pair, part)
    return Comparison(counted[True].pairs(), counted[False].pairs(), names, groups=units)


def _side(rows: Rows, codes: Codes, units: int, people: int, name: str) -> _Side:
    """Rows by ascending person, normalised a block at a time."""
    order = np.argsort(codes, kind="stable")
    unit = np.empty(rows.shape, np.float32)
    for block in blocks(len(rows), BLOCK_ROWS):
        unit[block] = unit_rows(rows[order[block]], name=name)
    edges = np.searchsorted(codes[order] * units // people, np.arange(units + 1))
    return _Side(unit, codes[order], edges)


def _tiles(left: _Side, right: _Side, units: int) -> Iterator[_Tile]:
    """Tiles that hold every pair; of a set with itself, only columns from each unit's own on."""
    for unit in range(units):
        start, stop = right.edges[unit : unit + 2].tolist()
        first, last = left.edges[unit : unit + 2].tolist()
        ranges = [(start, stop, True), (stop, len(right.rows), False)]
        if left is not right:
            ranges.append((0, start, False))
        for rows in blocks(last, BLOCK_ROWS, first):
            for low, high, own in ranges:
                for columns in blocks(high, BLOCK_COLUMNS, low):
                    yield _Tile(unit, rows, columns, own)


def _scores(left: _Side, right: _Side, tile: _Tile) -> tuple[Single, Single]:
    """Genuine scores of a tile [n], and impostor scores [m], or [rows, columns] of two units."""
    scores = left.rows[tile.rows] @ right.rows[tile.columns].T
    if not tile.own:
        return np.empty(0, np.float32), scores
    same = left.codes[tile.rows, None] == right.codes[None, tile.columns]
    counted = np.ones(scores.shape, bool)
    if left is right:  # each unordered pair once, and no image with itself
        counted = np.triu(counted, tile.rows.start - tile.columns.start + 1)
    return scores[same & counted], scores[~same & counted]


def _bins(scores: Single) -> NDArray[np.int32]:
    """Bin of each score [n]. It never falls with the score, whatever rounding does."""
    scaled = scores.reshape(-1) - np.float32(LOW)
    scaled *= np.float32(BINS / (HIGH - LOW))
    return scaled.astype(np.int32)


def _part(scores: Single, rounding: _Rounding) -> _Part:
    scores = scores.reshape(-1)
    at = _bins(scores)
    counts = np.bincount(rounding.level[at], minlength=len(rounding.scores))
    # Bins that stay as they are have levels of their own, so these can be emptied again.
    counts[rounding.level[rounding.exact]] = 0
    values, value_counts = np.unique(scores[rounding.exact[at]], return_counts=True)
    squares = np.einsum("i,i->", scores, scores, dtype=np.float64)
    return _Part(counts, values, value_counts, np.array([scores.sum(dtype=np.float64), squares]))


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
