"""Confidence intervals over people, for numbers that are made of pairs or of sets.

Two scores that share a person are not independent, nor are two images of one, so the person is what
is resampled or left out.

Leaving out: the spread of the estimates without each person gives a standard error (Efron and
Stein, "The Jackknife Estimate of Variance", Annals of Statistics 1981, who show that it errs on the
wide side), and Student's t the limits, on a scale on which the number is nearly symmetric. Where
few people carry most of the spread the standard error itself is uncertain: degrees of freedom fall
with the kurtosis, from Var(s^2) of a sample. Of many people, groups are left out (Shao and Tu, "The
Jackknife and Bootstrap", 1995, Section 2.3). An error rate is a proportion, and gets Wilson's
limits for as many independent pairs as would have this standard error.

Bootstrap (Bolle, Ratha and Pankanti, "Error analysis of pattern recognition systems: the subsets
bootstrap", CVIU 2004): with few people plain percentile intervals are too narrow; the percentiles
are moved outwards as Hesterberg ("What Teachers Should Know About the Bootstrap", The American
Statistician 2015, Section 4.3) proposes, so that an interval for a mean of n values has the width
of Student's t.

Coverage by simulation: benchmarks/interval_coverage.py, benchmarks/eer_coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

MAX_GROUPS = 200  # people left out one by one up to here, in so many groups beyond
FEWEST_FREEDOM = 2.0  # with fewer, Student's t is so wide that limits say nothing
# At most so many independent pairs does a person stand for in a rare error rate, up to RARE: a
# correlation of 1 / 8 at least between the errors of one person. Of frequent errors everybody has
# some, and the jackknife tells. Chosen by simulation, see docs/metrics.md.
PAIRS_PER_PERSON, RARE = 8.0, 0.05

Z_95 = 1.959963984540054

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """Limits of a confidence interval; both NaN when there are too few units to resample."""

    low: float
    high: float


NO_INTERVAL = Interval(float("nan"), float("nan"))


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


def ratio_interval(
    one: float, one_limits: Interval, other: float, other_limits: Interval
) -> Interval:
    """Interval of `one / other`, two independent numbers >= 0, from their separate intervals.

    MOVER-R (Newcombe, "MOVER-R confidence intervals for ratios and products of two independently
    estimated quantities", Statistical Methods in Medical Research 25, 2016), in a form that a zero
    does not break: it leaves out 1 just where the difference's interval leaves out 0, and has no
    upper limit where the other number's interval reaches zero.

    Returns:
        The interval; NaN limits where a number is below zero, both are zero, or a limit is NaN.
    """
    limits = one_limits.low, one_limits.high, other_limits.low, other_limits.high
    if not np.isfinite(limits).all() or min(one, other) < 0.0 or one + other == 0.0:
        return NO_INTERVAL
    low, high, other_low, other_high = limits
    product = one * other
    least, most = low * (2 * one - low), high * (2 * one - high)
    other_least, other_most = (limit * (2 * other - limit) for limit in (other_low, other_high))
    below, above = (
        product + math.sqrt(max(product**2 - one_end * other_end, 0.0))
        for one_end, other_end in ((least, other_most), (most, other_least))
    )
    return Interval(
        least / below if below > 0.0 else 0.0,
        above / other_least if other_least > 0.0 else math.inf,
    )


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


@dataclass(frozen=True)
class Scale:
    """A monotone scale for a number, and the way back (which clips to the number's range)."""

    to: Callable[[Values], Values]
    back: Callable[[Values], Values]


PLAIN = Scale(lambda x: x, lambda x: x)
ROOT = Scale(np.sqrt, lambda x: np.square(np.maximum(x, 0.0)))


def leave_out(n_units: int, groups: int, rng: np.random.Generator) -> Mask:
    """Who stays in each leave-out replicate, [replicates, n_units].

    Up to `groups` units are left out one by one; more are dealt at random into that many groups.
    """
    if n_units <= groups:
        return ~np.eye(n_units, dtype=bool)
    member = rng.permutation(np.arange(n_units) % groups)
    return np.asarray(member[None, :] != np.arange(groups)[:, None])


def jackknife_interval(
    estimate: float, samples: Sequence[Values], scale: Scale, level: float = 0.95
) -> Interval:
    """Interval from leave-out estimates.

    Args:
        estimate: the number itself.
        samples: leave-out estimates [g], g >= 2, one array for each independent sample of units.
        scale: where the estimate is nearly symmetric.
        level: confidence level, in (0, 1).

    Returns:
        Student's interval with Welch and Satterthwaite's degrees of freedom; NaN limits where a
        sample has fewer than two units or a value is not finite.
    """
    if not np.isfinite(estimate) or any(len(values) < 2 for values in samples):
        return NO_INTERVAL
    spreads = [scale.to(np.asarray(values, dtype=np.float64)) for values in samples]
    if not all(np.isfinite(values).all() for values in spreads):
        return NO_INTERVAL
    variances = np.array([values.var() * (len(values) - 1.0) for values in spreads])
    total = float(variances.sum())
    if total == 0.0:
        return Interval(estimate, estimate)
    freedoms = np.array([_freedom(values) for values in spreads])
    freedom = total**2 / float((variances**2 / freedoms).sum())
    reach = float(special.stdtrit(freedom, (1.0 + level) / 2.0)) * np.sqrt(total)
    centre = scale.to(np.asarray(estimate, dtype=np.float64))
    return Interval(float(scale.back(centre - reach)), float(scale.back(centre + reach)))


def _freedom(values: Values) -> float:
    """Degrees of freedom of a sample's variance: 2 / its squared coefficient of variation.

    Var(s^2) = sigma^4 (kurtosis - 1) / g nearly, so 2 g / (kurtosis - 1), which is g for normal
    values; one degree goes into the mean. No more than g - 1 are claimed, no fewer than two.
    """
    g = len(values)
    centred = values - values.mean()
    square = float(np.square(centred).mean())
    if square == 0.0:
        return g - 1.0
    excess = float((centred**4).mean()) / square**2 - 1.0
    most = max(g - 1.0, 1.0)
    freedom = 2.0 * g / max(excess, 1e-9) - 1.0
    return float(np.clip(freedom, min(FEWEST_FREEDOM, most), most))


def error_rate_interval(
    rate: float, without: Values, n_units: int, n_genuine: int, level: float = 0.95
) -> Interval:
    """Interval of an error rate over people.

    Wilson's limits for the effective number of pairs, rate (1 - rate) / variance, the variance that
    of the jackknife (Korn and Graubard, Survey Methodology 24, 1998; with Wilson's limits as in
    Franco et al., Journal of Survey Statistics and Methodology 7, 2019), and Student's quantile. A
    draw without those few who are confused has both too small a rate and too small a variance, so
    the effective number is bounded: by the genuine pairs, and where errors are rare by
    `PAIRS_PER_PERSON` for each person, since the errors of one person go together (Schuckers,
    "Using the beta-binomial distribution to assess performance of a biometric identification
    device", International Journal of Image and Graphics 3, 2003:
    n / correlation at most, whatever the number of pairs).

    Where nobody erred, leaving people out tells nothing. The upper limit is then Clopper and
    Pearson's for the share of people who err at all, which the error rate does not exceed.

    Args:
        rate: the error rate.
        without: the same without each person or group [g].
        n_units: number of people.
        n_genuine: number of genuine pairs.
        level: confidence level, in (0, 1).

    Returns:
        The interval; NaN limits where a value is not finite.
    """
    if not np.isfinite(rate) or not np.isfinite(without).all():
        return NO_INTERVAL
    tail = (1.0 - level) / 2.0
    if rate == 0.0:
        return Interval(0.0, float(1.0 - tail ** (1.0 / n_units)))
    variance = float(without.var()) * (len(without) - 1.0)
    most = min(float(n_genuine), PAIRS_PER_PERSON * max(1.0, rate / RARE) ** 2 * n_units)
    effective = rate * (1.0 - rate) / variance if variance > 0.0 else most
    if effective == 0.0:  # every pair is an error, though not without each person
        return Interval(0.0, 1.0)
    if effective < most:  # a variance that was estimated takes Student's quantile
        quantile = special.stdtrit(len(without) - 1, 1.0 - tail)
    else:
        effective, quantile = most, special.ndtri(1.0 - tail)
    return Interval(*wilson_interval(rate, effective, float(quantile)))
