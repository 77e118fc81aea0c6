"""Bootstrap over identities: replicates of error rates, and percentile intervals from them.

Two scores that share a person are not independent, so the person is the unit that is resampled
(Bolle, Ratha and Pankanti, "Error analysis of pattern recognition systems: the subsets bootstrap",
CVIU 2004). A replicate gives identity a the weight w_a: its genuine pairs count w_a times, the
impostor pairs of a and b count w_a w_b times.

With few identities plain percentile intervals are too narrow; the percentiles are moved outwards as
Hesterberg ("What Teachers Should Know About the Bootstrap", The American Statistician 2015, Section
4.3) proposes, so that an interval for a mean of n values has the width of Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline_steps.metrics.pairs import Comparison, Pairs
from pipeline_steps.metrics.verification import fisher_discriminant_ratio

Values = NDArray[np.float64]
Counts = NDArray[np.int64]

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """Limits of a confidence interval; both NaN when there are too few units to resample."""

    low: float
    high: float


NO_INTERVAL = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of the verification numbers, [replicates] each; NaN where undefined."""

    eer: Values
    fdr: Values
    genuine_mean: Values


def wilson_interval(share: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 22, 1927).

    Args:
        share: in [0, 1].
        n: number of trials, or their effective number.
        z: quantile of the normal distribution; the default gives 95 %.
    """
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def draw_counts(n_units: int, replicates: int, rng: np.random.Generator) -> Counts:
    """How often each unit is drawn, [replicates, n_units]; every row sums to n_units."""
    return rng.multinomial(n_units, np.full(n_units, 1.0 / n_units), size=replicates)


def percentile_interval(values: Values, n_units: int, level: float = 0.95) -> Interval:
    """Expanded percentile interval of bootstrap replicates.

    Args:
        values: replicates [r]; NaN are left out.
        n_units: number of units (identities) that were resampled.
        level: confidence level, in (0, 1).

    Returns:
        The interval, or NaN limits with fewer than two units or replicates.
    """
    defined = values[np.isfinite(values)]
    if n_units < 2 or len(defined) < 2:
        return NO_INTERVAL
    student = special.stdtrit(n_units - 1, (1.0 + level) / 2.0) * np.sqrt(n_units / (n_units - 1))
    tail = float(special.ndtr(-student))
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def bootstrap_verification(comparison: Comparison, counts: Counts) -> Replicates:
    """Error rates of bootstrap replicates, equal to those of the repeated scores.

    The scores are sorted once and summed once per pair of identities; a replicate then costs two
    cumulative sums of integer weights and a binary search for the crossing of the two rates.

    Args:
        comparison: pairs over k identities.
        counts: draws [r, k], as from `draw_counts`. Two comparisons over the same identities with
            the same counts give paired replicates, whose differences may be taken.
    """
    genuine, impostor = _group(comparison.genuine), _group(comparison.impostor)
    merged = np.sort(np.concatenate([genuine.scores, impostor.scores]), kind="stable")
    genuine_below = np.searchsorted(genuine.scores, merged, side="left")
    impostor_below = np.searchsorted(impostor.scores, merged, side="left")
    result = np.full((3, len(counts)), np.nan)
    for index, weights in enumerate(counts):
        genuine_weights = weights[genuine.first]
        impostor_weights = weights[impostor.first] * weights[impostor.second]
        if not genuine_weights.any() or not impostor_weights.any():
            continue
        eer = _crossing(
            genuine.cumulative(genuine_weights),
            impostor.cumulative(impostor_weights),
            genuine_below,
            impostor_below,
        )
        genuine_mean, genuine_sd = genuine.moments(genuine_weights)
        impostor_mean, impostor_sd = impostor.moments(impostor_weights)
        fdr = fisher_discriminant_ratio(genuine_mean, genuine_sd, impostor_mean, impostor_sd)
        result[:, index] = eer, fdr, genuine_mean
    return Replicates(eer=result[0], fdr=result[1], genuine_mean=result[2])


@dataclass(frozen=True)
class _Grouped:
    """Scores sorted, and summed over all images of each pair of identities.

    Attributes:
        scores: ascending [n].
        group: pair of identities of each score [n].
        first, second: the identities of each pair [g].
        size, total, squares: number, sum and sum of squares of each pair's scores [g], the sums
            about `centre`, which keeps their digits.
        centre: mean of all scores.
    """

    scores: Values
    group: NDArray[np.intp]
    first: Counts
    second: Counts
    size: Values
    total: Values
    squares: Values
    centre: float

    def cumulative(self, weights: Counts) -> Counts:
        """Weight of the i lowest scores, i = 0..n, from the pairs' weights [g]."""
        return np.concatenate([[0], np.cumsum(weights[self.group])])

    def moments(self, weights: Counts) -> tuple[float, float]:
        """Weighted mean and population standard deviation, from the pairs' weights [g]."""
        n = float(weights @ self.size)
        mean = float(weights @ self.total) / n
        variance = float(weights @ self.squares) / n - mean**2
        return mean + self.centre, float(np.sqrt(max(variance, 0.0)))


def _group(pairs: Pairs) -> _Grouped:
    order = np.argsort(pairs.scores, kind="stable")
    scores = pairs.scores[order]
    identities = int(max(pairs.first.max(), pairs.second.max())) + 1
    codes, group = np.unique(
        pairs.first[order] * identities + pairs.second[order], return_inverse=True
    )
    centre = float(scores.mean())
    return _Grouped(
        scores=scores,
        group=group,
        first=codes // identities,
        second=codes % identities,
        size=np.bincount(group).astype(np.float64),
        total=np.bincount(group, scores - centre).astype(np.float64),
        squares=np.bincount(group, np.square(scores - centre)).astype(np.float64),
        centre=centre,
    )


def _crossing(
    genuine_cumulative: Counts,
    impostor_cumulative: Counts,
    genuine_below: NDArray[np.intp],
    impostor_below: NDArray[np.intp],
) -> float:
    """Equal error rate where FMR - FNMR, which falls with the threshold, changes sign."""
    n_genuine, n_impostor = int(genuine_cumulative[-1]), int(impostor_cumulative[-1])

    def rates(threshold: int) -> tuple[float, float]:
        if threshold == len(genuine_below):  # above every score
            return 0.0, 1.0
        matching = n_impostor - int(impostor_cumulative[impostor_below[threshold]])
        rejected = int(genuine_cumulative[genuine_below[threshold]])
        return matching / n_impostor, rejected / n_genuine

    low, high = 0, len(genuine_below)
    while low < high:
        middle = (low + high) // 2
        fmr, fnmr = rates(middle)
        if fmr <= fnmr:
            high = middle
        else:
            low = middle + 1
    fmr, fnmr = rates(low)
    if fmr == fnmr or low == 0:
        return (fmr + fnmr) / 2.0
    return min(fmr + fnmr, sum(rates(low - 1))) / 2.0
