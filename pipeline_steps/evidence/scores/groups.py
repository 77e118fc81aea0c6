"""Rows of the table of groups: for whom generation and recognition fail more often.

All groups are held against one threshold, that of everybody together at a false match rate, as in a
system in use. The impostors of a group are pairs of its own people, whom recognisers confuse most
(Grother, Ngan and Hanaoka, "Face Recognition Vendor Test Part 3: Demographic Effects", NISTIR 8280,
2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline_steps.evidence.names import WORST_TO_BEST
from pipeline_steps.evidence.scores.sets import ImageSet
from pipeline_steps.metrics.arrays import Undefined
from pipeline_steps.metrics.intervals import (
    PLAIN,
    Interval,
    Values,
    error_rate_interval,
    jackknife_interval,
    ratio_interval,
)
from pipeline_steps.metrics.pairs import MAX_PAIRS, Comparison, Exactly, Pairs, compare
from pipeline_steps.metrics.verification import comparison_error_rates, threshold_at_fmr
from pipeline_steps.naming import VARIANT
from pipeline_steps.study.settings.evidence import GroupsSettings

# Measures by which groups are compared, and whether the highest one is the worst.
COMPARED = {
    "faces": False,
    "eer": True,
    "fnmr": True,
    "fmr": True,
    "fdr": False,
    "quality_mean": False,
}
MEASURES = (*COMPARED, "ita_mean")
GROUP_COLUMNS = (
    *(*VARIANT, "recogniser", "by", "group", "n_people", "n_images"),
    *(
        column
        for key in MEASURES
        for column in (key, *(f"{key.removesuffix('_mean')}_{end}" for end in ("low", "high")))
    ),
    *("threshold", "note"),
)

NONE = "nothing"  # whose interval leaves out 1
SAME = 1e-9  # scores of one pair, computed twice, differ by less

Row = dict[str, Any]
Estimates = dict[str, tuple[float, Interval]]


@dataclass(frozen=True)
class Grouped:
    """A set of images of the study's people.

    Attributes:
        images: those with a face.
        photographs: what they are compared with; None: with each other.
        counts: number of images and of those with a face, columns images and faces, by identity.
        quality, skin_tone: the extractors of these.
    """

    images: ImageSet
    photographs: ImageSet | None
    counts: pd.DataFrame
    quality: str
    skin_tone: str

    def comparison(
        self, judge: str, exactly: Exactly, people: Sequence[str] | None = None
    ) -> Comparison:
        """All pairs of some people, or of everybody."""
        sides: list[Any] = []
        for one in (self.images, self.photographs):
            if one is not None:
                own = one if people is None else one.of(people)
                sides += [own.features[judge], own.identities]
        return compare(*sides, keep=MAX_PAIRS, exactly=exactly)


def group_rows(
    found: Grouped,
    judge: str,
    groups: Mapping[str, Mapping[str, Sequence[str]]],
    settings: GroupsSettings,
) -> list[Row]:
    """A row for each group, and one of the worst against the best of what groups have in common.

    Args:
        found: the set of images.
        judge: recogniser whose embeddings are compared.
        groups: what groups share, to the people of each group.
        settings: rate, level and smallest size.

    Returns:
        The columns from recogniser on. The last row of each kind of groups holds ratios, whose
        intervals are wider where there were more than two groups to choose the worst and the best
        from (Bonferroni); its note says which leave out 1, that is, are beyond chance.
    """
    threshold = math.nan
    if len(found.images):
        whole = found.comparison(judge, Exactly(rates=(settings.fmr,)))
        counts = whole.impostor.count
        n_impostor = len(whole.impostor.scores) if counts is None else int(counts.sum())
        if n_impostor * settings.fmr >= 1.0:
            threshold = threshold_at_fmr(whole, settings.fmr)
    rows: list[Row] = []
    for by, members in groups.items():
        measured: dict[str, Sequence[str]] = {}
        for group in members:
            people = [name for name in members[group] if name in found.counts.index]
            row: Row = {"recogniser": judge, "by": by, "group": group, "threshold": threshold}
            row |= {"n_people": len(people), "n_images": found.counts["images"][people].sum()}
            if len(people) < settings.min_people:
                row["note"] = f"fewer than {settings.min_people} people"
            else:
                measured[group] = people
                numbers, row["note"] = _estimates(
                    found, judge, people, threshold, settings.confidence
                )
                row |= _columns(numbers)
            rows.append(row)
        if len(measured) > 1:
            choices = len(measured) * (len(measured) - 1) / 2
            level = 1.0 - (1.0 - settings.confidence) / choices
            limits = {
                group: _estimates(found, judge, people, threshold, level)[0]
                for group, people in measured.items()
            }
            row = {"recogniser": judge, "by": by, "group": WORST_TO_BEST, "threshold": threshold}
            rows.append(row | _ratios(limits))
    return rows


def worst_and_best(values: Mapping[str, float], measure: str) -> tuple[str, str]:
    """Names of the groups of the worst and of the best value."""
    known = [name for name in values if not math.isnan(values[name])]
    ranked = sorted(known, key=values.__getitem__, reverse=COMPARED[measure])
    return ranked[0], ranked[-1]


def _ratios(limits: Mapping[str, Estimates]) -> Row:
    """The worst value over the best one, of every measure that two groups have."""
    numbers: Estimates = {}
    for key in COMPARED:
        found = {group: one[key] for group, one in limits.items() if key in one}
        if len(found) < 2:
            continue
        ends = worst_and_best({group: value for group, (value, _) in found.items()}, key)
        (worst, worst_limits), (best, best_limits) = (found[group] for group in ends)
        if min(worst, best) >= 0.0 and worst + best > 0.0:
            ratio = worst / best if best else math.inf
            numbers[key] = ratio, ratio_interval(worst, worst_limits, best, best_limits)
    beyond = [key for key, (_, limit) in numbers.items() if limit.low > 1.0 or limit.high < 1.0]
    return _columns(numbers) | {"note": "beyond chance: " + (", ".join(beyond) or NONE)}


def _columns(numbers: Estimates) -> Row:
    row: Row = {}
    for key, (value, limits) in numbers.items():
        name = key.removesuffix("_mean")
        row |= {key: value, f"{name}_low": limits.low, f"{name}_high": limits.high}
    return row


def _estimates(
    found: Grouped, judge: str, people: Sequence[str], threshold: float, level: float
) -> tuple[Estimates, str]:
    """The numbers of a group with intervals over its people, and why some are missing."""
    counts = found.counts.loc[list(people)].to_numpy(float).T
    missed, limits = _rate(counts[0] - counts[1], counts[0], len(people), level)
    numbers: Estimates = {"faces": (1 - missed, Interval(1 - limits.high, 1 - limits.low))}
    own = found.images.of(people)
    for key, extractor in (("quality_mean", found.quality), ("ita_mean", found.skin_tone)):
        if len(own):
            numbers[key] = _mean(own.features[extractor][:, 0], own.identities, level)
    try:
        thresholds = () if math.isnan(threshold) else (threshold,)
        pairs = found.comparison(judge, Exactly(thresholds=thresholds), people)
        rates = comparison_error_rates(pairs, level=level)
    except Undefined as error:  # nobody has a face
        return numbers, str(error)
    for name, count in (("genuine", rates.n_genuine), ("impostor", rates.n_impostor)):
        if not count:  # nobody has two images, or one person alone a face
            return numbers, f"there are no {name} scores"
    numbers["eer"] = rates.eer, Interval(rates.eer_low, rates.eer_high)
    numbers["fdr"] = rates.fdr, Interval(rates.fdr_low, rates.fdr_high)
    if math.isnan(threshold):
        return numbers, "too few impostor pairs for this false match rate"
    for key, kind, wrong in (
        ("fnmr", pairs.genuine, pairs.genuine.scores < threshold - SAME),
        ("fmr", pairs.impostor, pairs.impostor.scores >= threshold - SAME),
    ):
        numbers[key] = _pair_rate(kind, wrong, pairs, level)
    return numbers, ""


def _pair_rate(
    kind: Pairs, wrong: NDArray[np.bool_], pairs: Comparison, level: float
) -> tuple[float, Interval]:
    """Share of the pairs of a kind that are wrong; a pair goes with each of its people."""
    weights = np.ones(len(wrong)) if kind.count is None else kind.count.astype(float)
    apart = kind.first != kind.second
    involved = np.concatenate([kind.first, kind.second[apart]])
    failed, tried = (
        np.bincount(involved, np.concatenate([of, of[apart]]), pairs.units).astype(np.float64)
        for of in (weights * wrong, weights)
    )
    totals = float(weights @ wrong), float(weights.sum())
    return _rate(failed, tried, len(pairs.identities), level, totals)


def _rate(
    failed: Values,
    tried: Values,
    people: int,
    level: float,
    totals: tuple[float, float] | None = None,
) -> tuple[float, Interval]:
    """A share of failures; both by person [k], and in total where one counts for two people."""
    all_failed, all_tried = totals or (float(failed.sum()), float(tried.sum()))
    rate = all_failed / all_tried
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (all_failed - failed) / (all_tried - tried)
    return rate, error_rate_interval(rate, without, people, int(all_tried), level)


def _mean(
    values: NDArray[np.float32], identities: Sequence[str], level: float
) -> tuple[float, Interval]:
    """Mean over images."""
    codes = np.unique(identities, return_inverse=True)[1]
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    mean = float(sums.sum() / sizes.sum())
    if len(sizes) < 2:
        return mean, Interval(math.nan, math.nan)
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    return mean, jackknife_interval(mean, [without], PLAIN, level)
