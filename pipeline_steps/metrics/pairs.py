"""Genuine and impostor comparisons of face embeddings, few or many.

ID-Booth, Section 4 and Figure 3: cosine similarity of identity features, all genuine pairs, and as
many impostor pairs drawn at random. Here the impostors may also be all of them.

All pairs are gone through in tiles. A small comparison lists their scores. Of a large one they are
*condensed*: counted by level, and near the thresholds of the error rates by score; neighbours in
the order of names form groups. Memory is then that of the embeddings and the counts, however many
pairs there are; whatever reads comparisons reads both.
"""

from __future__ import annotations

import math
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

MAX_PAIRS = 6_000_000  # of a comparison that lists them all: 107 people x 21 images, twice
OPERATING_POINTS = {"fmr100": 0.01, "fmr1000": 0.001}  # column -> false match rate
BLOCK_ROWS, BLOCK_COLUMNS = 512, 2048
GROUPS = 40  # of people, in a condensed comparison
LEVELS = 512  # of scores between LOW and HIGH
FINE, STEPS = 64, 2**16  # parts of a level near a threshold: for pairs of groups, for all together
AROUND = 3  # levels on either side of the equal error rate's that are counted finely
WITHIN = 2**16  # pairs of groups, times levels, up to which all levels are
SAMPLE_ROWS = 500  # that tell where thresholds lie
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


@dataclass(frozen=True)
class Exactly:
    """False match rates and thresholds near which a condensed comparison counts by score."""

    rates: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()


def compare(
    probes: ArrayLike,
    probe_identities: Sequence[str],
    gallery: ArrayLike | None = None,
    gallery_identities: Sequence[str] | None = None,
    *,
    impostors: Impostors = "all",
    rng: np.random.Generator | None = None,
    keep: int | None = None,
    exactly: Exactly | None = None,
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
        keep: a comparison of all pairs is condensed where they would be more than this if everybody
            had as many images as the one with most; so comparisons of the same people are alike,
            though faces were lost in some. Its scores are those of single precision. None: none is.
        exactly: what a condensed comparison has to tell exactly beside OPERATING_POINTS.

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
    whole = [_evened(codes[: len(a)]), *(() if within else (_evened(codes[len(a) :]),))]
    most = whole[0] * (whole[0] - 1) // 2 if within else whole[0] * whole[1]
    condensed = impostors == "all" and keep is not None and most > keep
    units = min(GROUPS, len(names)) if condensed else None
    left = _side(a, codes[: len(a)], units, len(names), "image" if within else "probe")
    right = left if within else _side(b, codes[len(a) :], units, len(names), "gallery")
    if units is not None:
        return Comparison(*_counted(left, right, units, exactly or Exactly()), names, groups=units)
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


def _evened(codes: Codes) -> int:
    """Number of images if each person had as many as the one with most."""
    counts = np.bincount(codes)
    return int(np.count_nonzero(counts) * counts.max(initial=0))


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
class _Tally:
    """How many genuine and impostor scores there are of each size.

    Attributes:
        coarse: by pair of units and level [2, units, units, LEVELS].
        levels: the levels that were counted finely, ascending [l].
        fine: of those by pair of units and FINE-th of a level [2, units * units, l * FINE].
        sharp: the levels that were counted exactly, some of the others, ascending [s].
        exact: of those by STEPS-th of a level, all units together [2, s * STEPS].
        genuine_sums: sum of the genuine scores and of their squares by unit [2, units].
    """

    coarse: Codes
    levels: Codes
    fine: NDArray[np.int32]
    sharp: Codes
    exact: Codes
    genuine_sums: Scores

    def by_bin(self) -> Codes:
        """Counts by FINE-th of a level [2, LEVELS * FINE], in the first where counted coarsely."""
        bins = np.zeros((2, LEVELS, FINE), np.int64)
        bins[:, :, 0] = self.coarse.sum((1, 2))
        bins[:, self.levels] = self.fine.sum(1, dtype=np.int64).reshape(2, -1, FINE)
        return bins.reshape(2, -1)


def _tally(left: _Side, right: _Side, units: int, levels: Codes, sharp: Codes) -> _Tally:
    """Go through all pairs once, counting the scores of some levels finely and of some exactly."""
    runs = np.split(levels, np.flatnonzero(np.diff(levels) > 1) + 1) if len(levels) else []
    unit_of = np.searchsorted(right.edges, np.arange(len(right.rows)), side="right") - 1
    shifts = (unit_of * LEVELS).astype(np.int16)
    places, slots = np.full((2, LEVELS), -1)
    places[levels], slots[sharp] = np.arange(len(levels)), np.arange(len(sharp))

    def sized(scores: Single, shift: NDArray[np.int16]) -> tuple[Codes, Codes, Codes]:
        """Counts by unit of the column, coarse and fine, and where to count in `exact`."""
        size = scores - np.float32(LOW)
        size *= np.float32(LEVELS / (HIGH - LOW))
        code = size.astype(np.int16)  # never falls with the score, whatever rounding does
        code += shift
        coarse = np.bincount(code.reshape(-1), minlength=units * LEVELS)
        near = np.zeros(scores.shape, bool)
        for run in runs:
            near |= (size >= float(run[0])) & (size < float(run[-1] + 1))
        at = np.flatnonzero(near)
        unit, level = np.divmod(code.reshape(-1)[at], np.int16(LEVELS))
        within = scores.reshape(-1)[at] - (LOW + level * ((HIGH - LOW) / LEVELS))
        step = np.clip(within * (LEVELS * STEPS / (HIGH - LOW)), 0, STEPS - 1).astype(np.int64)
        finely = (unit * np.int64(len(levels)) + places[level]) * FINE + step // (STEPS // FINE)
        fine = np.bincount(finely, minlength=units * len(levels) * FINE)
        slot = slots[level]
        exactly = (slot * STEPS + step)[slot >= 0]
        return coarse.reshape(units, LEVELS), fine.reshape(units, -1), exactly

    def work(tile: _Tile) -> tuple[int, list[Any], Any]:
        scores, kinds = _scores(left, right, tile)
        if not tile.own:
            return tile.unit, [(1, sized(scores, shifts[tile.columns]))], 0.0
        parts = [(kind, sized(scores[kinds[kind]], shifts[tile.columns][:1])) for kind in (0, 1)]
        genuine = scores[kinds[0]].astype(np.float64)
        return tile.unit, parts, (genuine.sum(), np.square(genuine).sum())

    tally = _Tally(
        np.zeros((2, units, units, LEVELS), np.int64),
        levels,
        np.zeros((2, units**2, len(levels) * FINE), np.int32),
        sharp,
        np.zeros((2, len(sharp) * STEPS), np.int64),
        np.zeros((2, units)),
    )
    for unit, parts, sums in parallel(work, _tiles(left, right, BLOCK_COLUMNS)):
        tally.genuine_sums[:, unit] += sums
        for kind, (coarse, finely, exactly) in parts:
            tally.coarse[kind, unit] += coarse
            tally.fine[kind, unit * units : (unit + 1) * units] += finely
            np.add.at(tally.exact[kind], exactly, 1)
    return tally


def _counted(left: _Side, right: _Side, units: int, exactly: Exactly) -> tuple[Pairs, Pairs]:
    """Genuine and impostor pairs, counted finely where some rows say that the thresholds lie."""
    step = max(1, len(left.rows) // SAMPLE_ROWS)
    some = _Side(left.rows[::step], left.codes[::step], -(-left.edges // step))
    none = np.zeros(0, np.int64)
    reach = LEVELS if units**2 * LEVELS <= WITHIN else AROUND
    tally, sharp = _tally(some, right, units, none, none), none
    if not tally.coarse.any((1, 2, 3)).all():  # genuine pairs are rare: all rows have to tell
        tally = _tally(left, right, units, none, none)
    crossing, thresholds = _thresholds(tally.by_bin(), exactly)
    while not np.isin(thresholds // FINE, sharp).all():  # again, if those rows were wrong
        beside = (thresholds // FINE)[:, None] + np.arange(-1, 2)
        sharp = np.union1d(sharp, np.clip(beside, 0, LEVELS - 1))
        around = crossing // FINE + np.arange(-reach, reach + 1)
        levels = np.union1d(sharp, np.clip(around, 0, LEVELS - 1))
        tally = _tally(left, right, units, levels, sharp)
        crossing, thresholds = _thresholds(tally.by_bin(), exactly)
    sums = _sums(left, right, tally.genuine_sums)
    own, other = (_condensed(tally, kind, thresholds, sums[kind]) for kind in (0, 1))
    return own, other


def _thresholds(bins: Codes, exactly: Exactly) -> tuple[int, Codes]:
    """The bin with the equal error rate's threshold, and all bins with any, of counts [2, n].

    The equal error rate's is the bin in which FMR falls below FNMR. A false match rate's is the bin
    in which FMR falls below it; the threshold with the next higher FMR lies there too, or in the
    bin of the next lower impostor. All other thresholds are only needed at the edges of bins.
    Without pairs of one kind there are none.
    """
    if not bins.any(axis=1).all():
        return 0, np.zeros(0, np.int64)
    below = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(bins, axis=1)], axis=1)
    fnmr, fmr = below[0] / below[0, -1], (below[1, -1] - below[1]) / below[1, -1]
    crossing = int(np.argmax(fmr <= fnmr)) - 1
    found = [crossing]
    for rate in (*OPERATING_POINTS.values(), *exactly.rates):
        last = int(np.argmax(fmr <= rate)) - 1
        found += [last, *np.flatnonzero(bins[1, :last])[-1:].tolist()]
    for threshold in exactly.thresholds:
        at = math.floor((threshold - LOW) * (LEVELS * FINE / (HIGH - LOW)))
        found.append(min(max(at, 0), LEVELS * FINE - 1))
    return crossing, np.unique(found)


def _condensed(tally: _Tally, kind: int, thresholds: Codes, sums: Scores) -> Pairs:
    """Pairs of one kind by level, by bin of levels counted finely, by score in thresholds' bins."""
    units, part = tally.coarse.shape[1], STEPS // FINE
    bins = (tally.levels[:, None] * FINE + np.arange(FINE)).reshape(-1)
    fine, columns = tally.fine[kind].copy(), np.flatnonzero(np.isin(bins, thresholds))
    within = fine[:, columns].T
    fine[:, columns] = 0
    coarse = tally.coarse[kind].reshape(units**2, LEVELS).copy()
    coarse[:, tally.levels] = 0
    parts = []
    for counts, centres in ((coarse, np.arange(LEVELS) + 0.5), (fine, (bins + 0.5) / FINE)):
        pair, at = np.nonzero(counts)
        parts.append((pair, centres[at], counts[pair, at]))
    # In a threshold's bin scores are counted, and so are pairs of units: they are dealt in order.
    at, pair = np.nonzero(within)
    of_pairs = np.cumsum(within[at, pair], dtype=np.int64)
    first = np.searchsorted(tally.sharp, bins[columns] // FINE) * STEPS
    places = ((first + bins[columns] % FINE * part)[:, None] + np.arange(part)).reshape(-1)
    places = places[tally.exact[kind, places] > 0]
    of_scores = np.cumsum(tally.exact[kind, places])
    ends = np.union1d(of_pairs, of_scores)
    place = places[np.searchsorted(of_scores, ends)]
    size = tally.sharp[place // STEPS] + (place % STEPS + 0.5) / STEPS
    parts.append((pair[np.searchsorted(of_pairs, ends)], size, np.diff(ends, prepend=0)))
    code, sizes, count = map(np.concatenate, zip(*parts, strict=True))
    scores = LOW + sizes * ((HIGH - LOW) / LEVELS)
    return Pairs(scores, *np.divmod(code, units), count.astype(np.int64), sums)


def _sums(left: _Side, right: _Side, genuine: Scores) -> Scores:
    """Sums of the scores and of their squares by kind and pair of units [2, 2, units * units].

    No pair is needed: of all rows of A with all of B, scores add up to the product of the sums of
    rows, and their squares to the inner product of A'A and B'B.
    """
    units, width = genuine.shape[1], left.rows.shape[1]

    def moments(side: _Side) -> tuple[Scores, Scores]:
        sums, squares = np.zeros((units, width)), np.zeros((units, width, width))
        for unit, (start, stop) in enumerate(pairwise(side.edges.tolist())):
            rows = side.rows[start:stop].astype(np.float64)
            sums[unit], squares[unit] = rows.sum(0), rows.T @ rows
        return sums, squares.reshape(units, -1)

    mine = moments(left)
    theirs = mine if left is right else moments(right)
    total = np.array([a @ b.T for a, b in zip(mine, theirs, strict=True)])
    diagonal = np.arange(units)
    if left is right:  # each unordered pair once, and no image with itself
        lengths = np.square(left.rows, dtype=np.float64).sum(1)
        unit_of = np.searchsorted(left.edges, np.arange(len(lengths)), side="right") - 1
        itself = [np.bincount(unit_of, lengths**power, minlength=units) for power in (1, 2)]
        total[:, diagonal, diagonal] = (total[:, diagonal, diagonal] - itself) / 2
        total = np.triu(total)
    own = np.zeros_like(total)
    own[:, diagonal, diagonal] = genuine
    return np.array([own, total - own]).reshape(2, 2, -1)
