"""Verification error rates of genuine and impostor similarity scores, with intervals over people.

Definitions: ISO/IEC 19795-1:2021; operating points and the equal error rate as in PyEER, which
follows Maio et al., "FVC2000: Fingerprint Verification Competition", TPAMI 2002.

Resampling: a replicate gives unit a (a person, or a group of people) the weight w_a; its genuine
pairs count w_a times, the impostor pairs of a and b count w_a w_b times. See `intervals`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import ROUNDING, Undefined
from pipeline_steps.metrics.intervals import (
    MAX_GROUPS,
    ROOT,
    Counts,
    error_rate_interval,
    jackknife_interval,
    leave_out,
)
from pipeline_steps.metrics.pairs import MAX_PAIRS, OPERATING_POINTS, Comparison, Pairs, compare

Scores = NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class ErrorRates:
    """Error rates and moments of two score distributions; rates lie in [0, 1].

    Attributes:
        n_genuine, n_impostor: numbers of scores.
        eer: equal error rate, the midpoint of FVC2000's interval.
        fmr100: FNMR at the threshold whose FMR is closest to 1 %.
        fmr1000: FNMR at the threshold whose FMR is closest to 0.1 %.
        impostor_mean, impostor_sd, genuine_mean, genuine_sd: moments (population sd).
        fdr: Fisher discriminant ratio, (mu_g - mu_i)^2 / (sd_g^2 + sd_i^2); infinite when both
            distributions are constant and differ.
        d_prime: decidability, |mu_g - mu_i| / sqrt((sd_g^2 + sd_i^2) / 2).
        eer_low, eer_high, fdr_low, fdr_high: intervals over people; NaN where nobody says whose the
            scores are, or with fewer than three people.

    Without pairs of one kind its moments and all rates are NaN. Of scores that are all equal the
    eer is 0.5, the FNMR at an FMR and the ratios are NaN.
    """

    n_genuine: int
    n_impostor: int
    eer: float
    fmr100: float
    fmr1000: float
    impostor_mean: float
    impostor_sd: float
    genuine_mean: float
    genuine_sd: float
    fdr: float
    d_prime: float
    eer_low: float = NAN
    eer_high: float = NAN
    fdr_low: float = NAN
    fdr_high: float = NAN


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of the verification numbers, [replicates] each; NaN where undefined."""

    eer: Scores
    fdr: Scores
    genuine_mean: Scores


@dataclass(frozen=True)
class ErrorCurve:
    """False match and false non-match rates at every threshold that separates scores.

    Attributes:
        thresholds: the distinct scores, ascending [t]; a pair matches when its score >= threshold.
        fmr: share of impostors that match [t], falling.
        fnmr: share of genuine pairs that don't [t], rising.
    """

    thresholds: Scores
    fmr: Scores
    fnmr: Scores


def identity_error_rates(
    probes: ArrayLike,
    probe_identities: Sequence[str],
    gallery: ArrayLike | None = None,
    gallery_identities: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> ErrorRates:
    """Error rates of all pairs of images, few or many, with intervals over people.

    Beyond `pairs.MAX_PAIRS` memory is that of the embeddings and some counts; the rates are still
    exactly those of all scores, which are single precision then.

    Args:
        probes, probe_identities, gallery, gallery_identities: as in `pairs.compare`.
        level: confidence level, in (0, 1).
        rng: deals people into groups where there are many; None: one of its own.

    Raises:
        ValueError: wrong shapes or lengths.
    """
    comparison = compare(probes, probe_identities, gallery, gallery_identities, keep=MAX_PAIRS)
    return comparison_error_rates(comparison, level=level, rng=rng)


def comparison_error_rates(
    comparison: Comparison, *, level: float = 0.95, rng: np.random.Generator | None = None
) -> ErrorRates:
    """Error rates of the pairs of a comparison. Arguments as in `identity_error_rates`."""
    found = _Sorted.of(comparison)
    everybody = np.ones(comparison.units, np.int64)
    kinds = found.genuine, found.impostor
    told = all(len(kind.scores) for kind in kinds)
    moments = (kind.moments(kind.weigh(everybody)) for kind in kinds)
    rates = _rates(found.curve() if told else None, *moments)
    if comparison.units < 3 or not told:
        return rates
    people = len(comparison.identities)
    kept = leave_out(comparison.units, MAX_GROUPS, rng or np.random.default_rng(0))
    without = found.replicates(kept.astype(np.int64))
    eer = error_rate_interval(rates.eer, without.eer, people, rates.n_genuine, level)
    fdr = jackknife_interval(rates.fdr, [without.fdr], ROOT, level)
    return replace(rates, eer_low=eer.low, eer_high=eer.high, fdr_low=fdr.low, fdr_high=fdr.high)


def threshold_at_fmr(comparison: Comparison, fmr: float) -> float:
    """The threshold whose FMR is closest to a wanted one, see :func:`fnmr_at_fmr`."""
    curve = _Sorted.of(comparison).curve()
    return float(curve.thresholds[int(np.argmin(np.abs(curve.fmr - fmr)))])


def error_rates(genuine: ArrayLike, impostor: ArrayLike) -> ErrorRates:
    """Error rates of similarity scores (higher means more alike).

    Equal to PyEER's but where genuine scores never exceed impostor scores: PyEER then returns an
    EER of 1; here the threshold above every score (FMR 0, FNMR 1) takes part.

    Raises:
        Undefined: no score of a kind.
        ValueError: a score that is not finite.
    """
    kinds = _scores(genuine, "genuine"), _scores(impostor, "impostor")
    moments = [(len(scores), float(scores.mean()), float(scores.std())) for scores in kinds]
    return _rates(error_curve(*kinds), *moments)


def _rates(
    curve: ErrorCurve | None,
    genuine: tuple[int, float, float],
    impostor: tuple[int, float, float],
) -> ErrorRates:
    """All numbers from the curve, and from number, mean and sd of either kind of scores."""
    fdr = fisher_discriminant_ratio(*genuine[1:], *impostor[1:])
    eer, points = NAN, dict.fromkeys(OPERATING_POINTS, NAN)
    if curve is not None:
        eer = equal_error_rate(lambda at: (curve.fmr[at], curve.fnmr[at]), len(curve.fmr))
        if len(curve.thresholds) > 1:
            points = {name: fnmr_at_fmr(curve, fmr) for name, fmr in OPERATING_POINTS.items()}
    return ErrorRates(
        n_genuine=genuine[0],
        n_impostor=impostor[0],
        eer=eer,
        **points,
        impostor_mean=impostor[1],
        impostor_sd=impostor[2],
        genuine_mean=genuine[1],
        genuine_sd=genuine[2],
        fdr=fdr,
        d_prime=float(np.sqrt(2.0 * fdr)),
    )


def error_curve(genuine: ArrayLike, impostor: ArrayLike) -> ErrorCurve:
    """FMR and FNMR at each distinct score. Args and Raises: as in `error_rates`."""
    kinds = _scores(genuine, "genuine"), _scores(impostor, "impostor")
    own, other = (Pairs(scores, *np.zeros((2, len(scores)), np.int64)) for scores in kinds)
    return _Sorted.of(Comparison(own, other, ("anybody",))).curve()


def equal_error_rate(rates: Callable[[int], tuple[float, float]], thresholds: int) -> float:
    """Midpoint of [FMR, FNMR] where the curves cross, as in FVC2000.

    Of the last threshold with FMR > FNMR and the first with FMR <= FNMR, the one with the smaller
    sum counts.

    Args:
        rates: FMR and FNMR at a threshold; FMR falls and FNMR rises with its number.
        thresholds: how many there are, >= 1. One more lies above every score: nothing matches.
    """

    def at(threshold: int) -> tuple[float, float]:
        return rates(threshold) if threshold < thresholds else (0.0, 1.0)

    low, high = 0, thresholds
    while low < high:
        middle = (low + high) // 2
        fmr, fnmr = at(middle)
        if fmr <= fnmr:
            high = middle
        else:
            low = middle + 1
    fmr, fnmr = at(low)
    if fmr == fnmr or low == 0:
        return float((fmr + fnmr) / 2.0)
    return float(min(fmr + fnmr, sum(at(low - 1))) / 2.0)


def fnmr_at_fmr(
    curve: ErrorCurve, fmr: float, rule: Literal["closest", "at most"] = "closest"
) -> float:
    """FNMR at a wanted FMR.

    Args:
        curve: rates at ascending thresholds.
        fmr: the wanted false match rate, in [0, 1].
        rule: "closest", PyEER's: the threshold whose FMR is closest, the lowest of equally close
            ones. "at most": the lowest threshold whose FMR does not exceed the wanted one, as
            ISO/IEC 19795-1 reports it; where even the highest score has too large an FMR, the
            threshold above every score, with FNMR 1.
    """
    if rule == "closest":
        return float(curve.fnmr[int(np.argmin(np.abs(curve.fmr - fmr)))])
    within = np.flatnonzero(curve.fmr <= fmr)
    return float(curve.fnmr[within[0]]) if len(within) else 1.0


def fisher_discriminant_ratio(
    genuine_mean: float, genuine_sd: float, impostor_mean: float, impostor_sd: float
) -> float:
    """(mu_g - mu_i)^2 / (sd_g^2 + sd_i^2), >= 0; infinite for two different constants, NaN for
    equal ones. What rounding may be is no difference and no spread."""
    separation = abs(genuine_mean - impostor_mean)
    if max(genuine_sd, impostor_sd) <= ROUNDING:
        return NAN if separation <= ROUNDING else float("inf")
    return separation**2 / (genuine_sd**2 + impostor_sd**2)


def bootstrap_verification(comparison: Comparison, counts: Counts) -> Replicates:
    """Error rates of bootstrap replicates, equal to those of the repeated scores.

    The scores are sorted once and summed once per pair of units; a replicate then costs two
    cumulative sums of integer weights and a binary search for the crossing of the two rates.

    Args:
        comparison: pairs over k units.
        counts: draws [r, k], as from `intervals.draw_counts`. Two comparisons over the same people
            with the same counts give paired replicates, whose differences may be taken.
    """
    return _Sorted.of(comparison).replicates(counts)


@dataclass(frozen=True)
class _Kind:
    """Genuine or impostor scores, sorted, and summed over all images of each pair of units.

    Attributes:
        scores: ascending [n].
        count: how many pairs each stands for [n].
        group: pair of units of each score [n].
        first, second: the units of each pair [g]; None: a genuine pair is of one unit.
        size, total, squares: number, sum and sum of squares of each pair's scores [g], the sums
            about `centre`, which keeps their digits.
        centre: mean of all scores.
    """

    scores: Scores
    count: Counts
    group: NDArray[np.intp]
    first: Counts
    second: Counts | None
    size: Scores
    total: Scores
    squares: Scores
    centre: float

    @staticmethod
    def of(pairs: Pairs, name: str, units: int) -> _Kind:
        scores = _finite(pairs.scores, name)
        order = np.argsort(scores, kind="stable")
        scores = scores[order]
        count = np.ones(len(scores), np.int64) if pairs.count is None else pairs.count[order]
        code = pairs.first[order] * units + pairs.second[order]
        codes, group = np.unique(code, return_inverse=True)
        if pairs.sums is None:
            centre = float(scores.mean()) if len(scores) else 0.0
            total = np.bincount(group, scores - centre).astype(np.float64)
            squares = np.bincount(group, np.square(scores - centre)).astype(np.float64)
        else:
            centre = 0.0
            total, squares = pairs.sums[:, codes]
        size = np.bincount(group, count).astype(np.float64)
        second = None if name == "genuine" else codes % units
        return _Kind(scores, count, group, codes // units, second, size, total, squares, centre)

    def weigh(self, units: Counts) -> Counts:
        """Weight of each pair of units [g], from the units' weights [k]."""
        weights: Counts = units[self.first]
        return weights if self.second is None else weights * units[self.second]

    def cumulative(self, weights: Counts) -> Counts:
        """Weight of the i lowest scores, i = 0..n, from the pairs' weights [g]."""
        return np.concatenate([[0], np.cumsum(weights[self.group] * self.count)])

    def moments(self, weights: Counts) -> tuple[int, float, float]:
        """Weighted number, mean and population standard deviation, from the pairs' weights [g]."""
        n = float(weights @ self.size)
        if n == 0.0:
            return 0, NAN, NAN
        mean = float(weights @ self.total) / n
        variance = float(weights @ self.squares) / n - mean**2
        return int(n), mean + self.centre, float(np.sqrt(max(variance, 0.0)))


@dataclass(frozen=True)
class _Sorted:
    """All scores of a comparison, ready for any weights of its units.

    Attributes:
        genuine, impostor: of either kind.
        thresholds: all scores, ascending, equal ones once [t].
        below: how many genuine and impostor scores lie below each threshold [2, t].
    """

    genuine: _Kind
    impostor: _Kind
    thresholds: Scores
    below: NDArray[np.intp]

    @staticmethod
    def of(comparison: Comparison) -> _Sorted:
        genuine = _Kind.of(comparison.genuine, "genuine", comparison.units)
        impostor = _Kind.of(comparison.impostor, "impostor", comparison.units)
        # A stable sort merges two sorted runs in linear time.
        merged = np.sort(np.concatenate([genuine.scores, impostor.scores]), kind="stable")
        if len(merged) and merged[-1] - merged[0] <= ROUNDING:
            merged = np.full_like(merged, merged[0])
            genuine, impostor = (
                replace(kind, scores=np.full_like(kind.scores, merged[0]))
                for kind in (genuine, impostor)
            )
        thresholds = merged[np.insert(merged[1:] != merged[:-1], 0, True)[: len(merged)]]
        below = [np.searchsorted(kind.scores, thresholds) for kind in (genuine, impostor)]
        return _Sorted(genuine, impostor, thresholds, np.array(below))

    def rates(self, genuine: Counts, impostor: Counts) -> Callable[[Any], tuple[Any, Any]]:
        """FMR and FNMR at any of the thresholds, from the weights of pairs of units."""
        own, others = self.genuine.cumulative(genuine), self.impostor.cumulative(impostor)

        def at(threshold: Any) -> tuple[Any, Any]:
            matching = others[-1] - others[self.below[1, threshold]]
            return matching / others[-1], own[self.below[0, threshold]] / own[-1]

        return at

    def curve(self) -> ErrorCurve:
        """The rates at every threshold, each pair counting once."""
        once = (np.ones_like(kind.first) for kind in (self.genuine, self.impostor))
        return ErrorCurve(self.thresholds, *self.rates(*once)(slice(None)))

    def replicates(self, counts: Counts) -> Replicates:
        """The numbers for each row of weights of the units [r, k]."""
        result = np.full((3, len(counts)), np.nan)
        for index, units in enumerate(counts):
            genuine, impostor = self.genuine.weigh(units), self.impostor.weigh(units)
            if not genuine.any() or not impostor.any():
                continue
            eer = equal_error_rate(self.rates(genuine, impostor), len(self.thresholds))
            own = self.genuine.moments(genuine)[1:]
            fdr = fisher_discriminant_ratio(*own, *self.impostor.moments(impostor)[1:])
            result[:, index] = eer, fdr, own[0]
        return Replicates(*result)


def _scores(values: ArrayLike, name: str) -> Scores:
    scores = _finite(values, name)
    if scores.size == 0:
        raise Undefined(f"there are no {name} scores")
    return scores


def _finite(values: ArrayLike, name: str) -> Scores:
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} scores hold values that are not finite")
    return scores
