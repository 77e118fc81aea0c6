"""Error rates of more pairs than fit into memory, exact all the same.

First pass: scores are counted in narrow bins. The bins tell in which of them each wanted threshold
lies; a second pass collects the scores of those few bins, and the rates follow from them and from
the counts below. Memory is that of the embeddings, the bins and a few blocks of scores, however
many pairs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.metrics.parallel import parallel
from pipeline_steps.metrics.score_bins import Bounds, Distinct, Moments
from pipeline_steps.metrics.verification import (
    ErrorCurve,
    ErrorRates,
    equal_error_rate,
    fisher_discriminant_ratio,
)

BINS = 2**17

Scores = NDArray[np.float32]
Counts = NDArray[np.int64]
Positions = NDArray[np.int32]


class ScoreTiles(Protocol):
    """Scores of all pairs in tiles, which can be asked for again and in any order."""

    @property
    def low(self) -> float:
        """No score lies below this."""

    @property
    def high(self) -> float:
        """No score lies above this."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""

    def tile(self, index: int) -> tuple[Scores, Scores]:
        """All scores of a tile, and the genuine ones among them; both [n], in [low, high]."""


@dataclass(frozen=True)
class StreamedRates:
    """Error rates of a stream of scores.

    Attributes:
        rates: exactly `error_rates` of the scores (moments up to rounding).
        fnmr: FMR asked for -> FNMR at the threshold whose FMR is closest to it.
        curve: rates at the edges of the bins, for a DET curve.
        genuine, impostor: counts per bin [bins].
    """

    rates: ErrorRates
    fnmr: dict[float, float]
    curve: ErrorCurve
    genuine: Counts
    impostor: Counts


def streamed_error_rates(
    source: ScoreTiles, *, fmrs: Sequence[float] = (), bins: int = BINS
) -> StreamedRates:
    """Error rates by two passes over the scores. Definitions are those of `error_rates`.

    Args:
        source: the scores, float32; a tile has to give the same scores each time.
        fmrs: further false match rates in [0, 1] whose FNMR is wanted.
        bins: bins of the first pass, >= 2; changes speed and memory, no rate.

    Raises:
        ValueError: there are no genuine or no impostor scores.
    """
    bounds = Bounds(source.low, source.high, bins)
    histogram = _count(source, bounds)
    targets = tuple(dict.fromkeys((0.01, 0.001, *fmrs)))
    crossing = histogram.crossing_bin()
    wanted = {crossing}.union(*(histogram.bins_of_fmr(fmr) for fmr in targets))
    found = _collect(source, bounds, np.array(sorted(wanted)))
    fnmr = {fmr: _fnmr(histogram, found, fmr) for fmr in targets}
    edges = np.linspace(source.low, source.high, bins + 1)
    n_genuine, n_impostor = histogram.n_genuine, histogram.n_impostor
    genuine_mean, genuine_sd = histogram.genuine_moments.mean_and_sd
    impostor_mean, impostor_sd = histogram.impostor_moments.mean_and_sd
    fdr = fisher_discriminant_ratio(genuine_mean, genuine_sd, impostor_mean, impostor_sd)
    rates = ErrorRates(
        n_genuine=n_genuine,
        n_impostor=n_impostor,
        eer=_equal_error_rate(histogram, found, crossing),
        fmr100=fnmr[0.01],
        fmr1000=fnmr[0.001],
        impostor_mean=impostor_mean,
        impostor_sd=impostor_sd,
        genuine_mean=genuine_mean,
        genuine_sd=genuine_sd,
        fdr=fdr,
        d_prime=float(np.sqrt(2.0 * fdr)),
    )
    curve = ErrorCurve(
        thresholds=edges,
        fmr=(n_impostor - histogram.impostor_below) / n_impostor,
        fnmr=histogram.genuine_below / n_genuine,
    )
    return StreamedRates(rates, fnmr, curve, histogram.genuine, histogram.impostor)


@dataclass(frozen=True)
class _Histogram:
    """Counts per bin [bins] and below each edge [bins + 1], with the moments."""

    genuine: Counts
    impostor: Counts
    genuine_moments: Moments
    impostor_moments: Moments
    genuine_below: Counts = field(init=False)
    impostor_below: Counts = field(init=False)

    def __post_init__(self) -> None:
        for name in ("genuine", "impostor"):
            below = np.concatenate([[0], np.cumsum(getattr(self, name))])
            object.__setattr__(self, f"{name}_below", below)
            if below[-1] == 0:
                raise ValueError(f"there are no {name} scores")

    @property
    def n_genuine(self) -> int:
        return int(self.genuine_below[-1])

    @property
    def n_impostor(self) -> int:
        return int(self.impostor_below[-1])

    def crossing_bin(self) -> int:
        """The bin at whose lower edge FMR > FNMR, and at whose upper edge no longer."""
        fmr = (self.n_impostor - self.impostor_below) / self.n_impostor
        return int(np.argmax(fmr <= self.genuine_below / self.n_genuine)) - 1

    def rank_of_fmr(self, fmr: float) -> int:
        """Number of impostors below the lowest threshold with at most this FMR."""
        n = self.n_impostor
        matches = min(int(fmr * n) + 1, n)
        while matches / n > fmr:
            matches -= 1
        return n - matches

    def bins_of_fmr(self, fmr: float) -> set[int]:
        """Bins with the impostor of that rank, and with the next lower one."""
        rank = self.rank_of_fmr(fmr)
        if rank == 0:
            return set()
        last = int(np.searchsorted(self.impostor_below, rank, side="left")) - 1
        before = np.flatnonzero(self.impostor[:last])
        return {last, *before[-1:].tolist()}


@dataclass(frozen=True)
class _Collected:
    """Distinct scores of some bins, ascending [v], with how often and in which bin they occur."""

    values: Scores
    genuine: Counts
    impostor: Counts
    position: Positions


def _count(source: ScoreTiles, bounds: Bounds) -> _Histogram:
    def work(index: int) -> tuple[Counts, Counts, Moments, Moments]:
        everything, genuine = source.tile(index)
        moments, genuine_moments = Moments(), Moments()
        moments.add(everything)
        genuine_moments.add(genuine)
        return (
            np.bincount(bounds.positions(everything), minlength=bounds.bins),
            np.bincount(bounds.positions(genuine), minlength=bounds.bins),
            moments,
            genuine_moments,
        )

    everything, genuine = np.zeros((2, bounds.bins), dtype=np.int64)
    moments, genuine_moments = Moments(), Moments()
    for all_counts, genuine_counts, all_sums, genuine_sums in parallel(work, range(source.tiles)):
        everything += all_counts
        genuine += genuine_counts
        moments, genuine_moments = moments + all_sums, genuine_moments + genuine_sums
    return _Histogram(genuine, everything - genuine, genuine_moments, moments - genuine_moments)


def _collect(source: ScoreTiles, bounds: Bounds, wanted: NDArray[np.int64]) -> _Collected:
    """The scores of the wanted bins, as distinct values with their counts."""
    table = np.zeros(bounds.bins, dtype=bool)
    table[wanted] = True

    def work(index: int) -> tuple[Scores, Scores]:
        everything, genuine = source.tile(index)

        def pick(scores: Scores) -> Scores:
            return scores[table[bounds.positions(scores)]]

        return pick(everything), pick(genuine)

    merged = [Distinct(), Distinct()]
    for parts in parallel(work, range(source.tiles)):
        for distinct, part in zip(merged, parts, strict=True):
            distinct.add(part)
    (values, counts), (genuine_values, genuine_counts) = (part.result() for part in merged)
    genuine = np.zeros_like(counts)
    genuine[np.searchsorted(values, genuine_values)] = genuine_counts
    return _Collected(values, genuine, counts - genuine, bounds.positions(values))


def _equal_error_rate(histogram: _Histogram, found: _Collected, crossing: int) -> float:
    inside = found.position == crossing
    genuine, impostor = found.genuine[inside], found.impostor[inside]
    # Rates at each distinct score of the bin, then at the first score above it.
    matching = histogram.n_impostor - histogram.impostor_below[crossing]
    fmr = (matching - np.concatenate([[0], np.cumsum(impostor)])) / histogram.n_impostor
    rejected = histogram.genuine_below[crossing]
    fnmr = (rejected + np.concatenate([[0], np.cumsum(genuine)])) / histogram.n_genuine
    return equal_error_rate(fmr, fnmr)


def _fnmr(histogram: _Histogram, found: _Collected, fmr: float) -> float:
    """FNMR at the threshold whose FMR is closest to `fmr`, the lowest such threshold.

    Candidates are the lowest threshold with at most this FMR, which lies just above the impostor of
    `rank_of_fmr`, and the lowest one with the next higher FMR, just above the next lower impostor.
    """
    n = histogram.n_impostor
    rank = histogram.rank_of_fmr(fmr)
    if rank == 0:
        return 0.0
    starts = histogram.impostor_below[found.position]
    genuine_starts = histogram.genuine_below[found.position]
    first_of_bin = np.searchsorted(found.position, found.position)
    upto = np.cumsum(found.impostor)
    genuine_upto = np.cumsum(found.genuine)
    # Impostors and genuine scores up to and including each collected value.
    below = starts + upto - np.concatenate([[0], upto])[first_of_bin]
    genuine_below = (
        genuine_starts + genuine_upto - np.concatenate([[0], genuine_upto])[first_of_bin]
    )
    impostors = np.flatnonzero(found.impostor)
    after = int(impostors[np.searchsorted(below[impostors], rank)])
    higher = n - int(below[after] - found.impostor[after])  # matches one impostor value earlier
    fnmr_before = 0.0
    if higher < n:
        earlier = impostors[impostors < after][-1]
        fnmr_before = float(genuine_below[earlier] / histogram.n_genuine)
    exists = below[after] < n or genuine_below[after] < histogram.n_genuine
    lower = n - int(below[after])
    if not exists or abs(higher / n - fmr) <= abs(lower / n - fmr):
        return fnmr_before
    return float(genuine_below[after] / histogram.n_genuine)
