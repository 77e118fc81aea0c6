"""Error rates of more pairs than fit into memory, with intervals over groups of people.

The people are dealt into groups. Scores are counted in bins for all pairs and for the pairs in
which each group takes part; the difference is the count without that group, and the error rates
without it follow. So one more pass gives what the jackknife needs, whatever the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.metrics.jackknife import (
    ROOT,
    VerificationIntervals,
    error_rate_interval,
    jackknife_interval,
)
from pipeline_steps.metrics.parallel import parallel
from pipeline_steps.metrics.score_bins import Bounds
from pipeline_steps.metrics.score_tiles import CosineTiles
from pipeline_steps.metrics.verification import ErrorRates, fisher_discriminant_ratio

GROUPS = 40
BINS = 2**13

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class _Block:
    """Counts of one tile's pairs between two groups."""

    first: int
    second: int
    genuine: Counts
    everything: Counts


def streamed_intervals(
    tiles: CosineTiles, rates: ErrorRates, level: float = 0.95
) -> VerificationIntervals:
    """Intervals of the equal error rate and of the Fisher discriminant ratio.

    Args:
        tiles: all pairs; neighbours in the sorting order of identities form a group.
        rates: the exact error rates of these pairs.
        level: confidence level, in (0, 1).
    """
    people = 1 + int(max(tiles.a_codes[-1], tiles.b_codes[-1]))
    groups = min(GROUPS, people)
    bounds = Bounds(tiles.low, tiles.high, BINS)
    # Pairs of each group, counted once where both sides belong to it.
    genuine, everything = np.zeros((2, groups, BINS), dtype=np.int64)
    all_genuine, all_pairs = np.zeros((2, BINS), dtype=np.int64)

    def work(index: int) -> list[_Block]:
        return _blocks(tiles, index, people, groups, bounds)

    for blocks in parallel(work, range(tiles.tiles)):
        for block in blocks:
            for group in {block.first, block.second}:
                genuine[group] += block.genuine
                everything[group] += block.everything
            all_genuine += block.genuine
            all_pairs += block.everything
    centres = tiles.low + (np.arange(BINS) + 0.5) * (tiles.high - tiles.low) / BINS
    without = [
        _rates(all_genuine - genuine[group], all_pairs - everything[group], centres)
        for group in range(groups)
    ]
    eer, fdr = (np.array(values) for values in zip(*without, strict=True))
    # What the bins blur is the same with and without a group.
    whole = _rates(all_genuine, all_pairs, centres)
    return VerificationIntervals(
        eer=error_rate_interval(
            rates.eer, np.clip(eer - whole[0] + rates.eer, 0.0, 1.0), people, rates.n_genuine, level
        ),
        fdr=jackknife_interval(rates.fdr, [fdr], ROOT, level),
    )


def _blocks(
    tiles: CosineTiles, index: int, people: int, groups: int, bounds: Bounds
) -> list[_Block]:
    """A tile's counts by the groups of both sides."""
    block = tiles.block(index)
    positions = bounds.positions(block.scores)
    found = []
    for first, rows in _runs(block.a_codes * groups // people):
        for second, columns in _runs(block.b_codes * groups // people):
            part = positions[rows, columns]
            pairs = np.ones(part.shape, dtype=bool)
            if block.diagonal:
                if columns.start < rows.start:
                    continue  # below the diagonal
                pairs = np.triu(pairs, 1) if rows == columns else pairs
            everything = np.bincount(part[pairs], minlength=bounds.bins)
            genuine = np.zeros(bounds.bins, np.int64)
            if first == second:
                same = block.a_codes[rows, None] == block.b_codes[None, columns]
                genuine = np.bincount(part[pairs & same], minlength=bounds.bins)
            found.append(_Block(first, second, genuine, everything))
    return found


def _runs(groups: NDArray[np.intp]) -> list[tuple[int, slice]]:
    """Ascending group numbers as (group, where it stands)."""
    names, starts = np.unique(groups, return_index=True)
    edges = [*starts.tolist(), len(groups)]
    return [(int(name), slice(*edges[i : i + 2])) for i, name in enumerate(names)]


def _rates(genuine: Counts, everything: Counts, centres: Values) -> tuple[float, float]:
    """Equal error rate, interpolated within a bin, and Fisher discriminant ratio, from counts."""
    impostor = everything - genuine
    n_genuine, n_impostor = int(genuine.sum()), int(impostor.sum())
    if n_genuine == 0 or n_impostor == 0:
        return float("nan"), float("nan")
    fnmr = np.concatenate([[0], np.cumsum(genuine)]) / n_genuine
    fmr = 1.0 - np.concatenate([[0], np.cumsum(impostor)]) / n_impostor
    after = int(np.argmax(fmr <= fnmr))
    gap = (fmr - fnmr)[after - 1 : after + 1]
    share = float(gap[0] / (gap[0] - gap[1]))
    eer = float(fnmr[after - 1] + share * (fnmr[after] - fnmr[after - 1]))
    moments = []
    for counts, n in ((genuine, n_genuine), (impostor, n_impostor)):
        mean = float(counts @ centres) / n
        moments += [mean, float(np.sqrt(counts @ np.square(centres - mean) / n))]
    return eer, fisher_discriminant_ratio(*moments)
