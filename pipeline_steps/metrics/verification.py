"""Verification error rates of genuine and impostor similarity scores.

Definitions: ISO/IEC 19795-1:2021; operating points and the equal error rate as in PyEER, which
follows Maio et al., "FVC2000: Fingerprint Verification Competition", TPAMI 2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


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


def error_rates(genuine: ArrayLike, impostor: ArrayLike) -> ErrorRates:
    """Error rates of similarity scores (higher means more alike).

    Equal to PyEER's on every input but one: where genuine scores never exceed impostor scores at
    any observed threshold (for instance all scores equal), PyEER gives up and returns EER = 1; here
    the threshold above every score (FMR 0, FNMR 1) takes part in the equal error rate.

    Args:
        genuine: scores of pairs of one identity [n], n >= 1.
        impostor: scores of pairs of two identities [m], m >= 1.

    Raises:
        ValueError: an empty or not finite set of scores.
    """
    positive, negative = _scores(genuine, "genuine"), _scores(impostor, "impostor")
    curve = error_curve(positive, negative)
    moments = (negative.mean(), negative.std(), positive.mean(), positive.std())
    impostor_mean, impostor_sd, genuine_mean, genuine_sd = (float(value) for value in moments)
    fdr = fisher_discriminant_ratio(genuine_mean, genuine_sd, impostor_mean, impostor_sd)
    return ErrorRates(
        n_genuine=len(positive),
        n_impostor=len(negative),
        eer=equal_error_rate(curve.fmr, curve.fnmr),
        fmr100=fnmr_at_fmr(curve, 0.01),
        fmr1000=fnmr_at_fmr(curve, 0.001),
        impostor_mean=impostor_mean,
        impostor_sd=impostor_sd,
        genuine_mean=genuine_mean,
        genuine_sd=genuine_sd,
        fdr=fdr,
        d_prime=float(np.sqrt(2.0 * fdr)),
    )


def error_curve(genuine: ArrayLike, impostor: ArrayLike) -> ErrorCurve:
    """FMR and FNMR at each distinct score: two sorts, then two merges.

    Args and Raises: as in `error_rates`.
    """
    positive = np.sort(_scores(genuine, "genuine"))
    negative = np.sort(_scores(impostor, "impostor"))
    # A stable sort merges two sorted runs in linear time.
    merged = np.sort(np.concatenate([positive, negative]), kind="stable")
    thresholds = merged[np.concatenate([[True], merged[1:] != merged[:-1]])]
    fnmr = np.searchsorted(positive, thresholds, side="left") / len(positive)
    fmr = (len(negative) - np.searchsorted(negative, thresholds, side="left")) / len(negative)
    return ErrorCurve(thresholds=thresholds, fmr=fmr, fnmr=fnmr)


def equal_error_rate(fmr: Scores, fnmr: Scores) -> float:
    """Midpoint of [FMR, FNMR] where the curves cross, as in FVC2000.

    Of the last threshold with FMR > FNMR and the first with FMR <= FNMR, the one with the smaller
    sum counts.

    Args:
        fmr, fnmr: rates at ascending thresholds [t], t >= 1.
    """
    # One threshold above every score: nothing matches.
    fmr, fnmr = np.append(fmr, 0.0), np.append(fnmr, 1.0)
    after = int(np.argmax(fmr <= fnmr))
    sums = fmr + fnmr
    crosses_exactly = fmr[after] == fnmr[after]
    before = after if crosses_exactly or after == 0 else after - 1
    return float(min(sums[before], sums[after]) / 2.0)


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


def det_curve(curve: ErrorCurve, fmrs: ArrayLike) -> Scores:
    """FNMR at each FMR of a detection error trade-off curve, [f], by the rule "at most".

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
    Plotted on axes of normal deviates, or logarithmic ones.

    Args:
        curve: rates at ascending thresholds.
        fmrs: false match rates in [0, 1], [f].
    """
    # FMR falls with the threshold; count from its end for the lowest threshold within the limit.
    first = len(curve.fmr) - np.searchsorted(curve.fmr[::-1], np.asarray(fmrs), side="right")
    result: Scores = np.append(curve.fnmr, 1.0)[first]
    return result


def fisher_discriminant_ratio(
    genuine_mean: float, genuine_sd: float, impostor_mean: float, impostor_sd: float
) -> float:
    """(mu_g - mu_i)^2 / (sd_g^2 + sd_i^2), >= 0; infinite for two different constants."""
    separation = (genuine_mean - impostor_mean) ** 2
    spread = genuine_sd**2 + impostor_sd**2
    if spread == 0:
        return 0.0 if separation == 0 else float("inf")
    return separation / spread


def _scores(values: ArrayLike, name: str) -> Scores:
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if scores.size == 0:
        raise ValueError(f"there are no {name} scores")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} scores hold values that are not finite")
    return scores
