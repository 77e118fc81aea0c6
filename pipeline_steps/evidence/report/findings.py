"""What the tables say, in sentences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from pipeline_steps.evidence.tables.grouping import sorted_groups
from pipeline_steps.evidence.tables.layout import competes
from pipeline_steps.evidence.tables.names import Names
from pipeline_steps.naming import REFERENCES, UNTUNED
from pipeline_steps.recognition.protocol import average_with_interval

CHANCE = 0.5  # accuracy and equal error rate of guessing


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence limits; NaN limits: no interval."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def number(self, digits: int = 3) -> str:
        """`0.123`."""
        return f"{self.value:.{digits}f}"

    def interval(self, digits: int = 3) -> str:
        """`[0.100, 0.150]`, empty without interval."""
        if math.isnan(self.low) or math.isnan(self.high):
            return ""
        return f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def text(self, digits: int = 3) -> str:
        """`0.123 [0.100, 0.150]`."""
        return f"{self.number(digits)} {self.interval(digits)}".strip()

    def overlaps(self, other: Estimate) -> bool | None:
        """Whether the two intervals overlap; None without intervals."""
        limits = (self.low, self.high, other.low, other.high)
        if any(math.isnan(limit) for limit in limits):
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class OrderClaim:
    """Whether the Fisher ratios of one comparison rise in the expected order.

    Attributes:
        setting: (compared with, base model, prompts, recogniser) as shown.
        ratios: (method as shown, Fisher ratio) in the expected order.
        holds: each is larger than the one before.
        overlap: whether the first and last interval overlap; None without intervals.
        difference: last minus first with its paired interval; None where it was not computed.
    """

    setting: tuple[str, str, str, str]
    ratios: tuple[tuple[str, Estimate], ...]
    holds: bool
    overlap: bool | None
    difference: Estimate | None

    @property
    def beyond_chance(self) -> int:
        """1 or -1 where the paired interval lies above or below zero, else 0."""
        if self.difference is None or math.isnan(self.difference.low):
            return 0
        return int(self.difference.low > 0) - int(self.difference.high < 0)


def order_claims(
    identity: pd.DataFrame, comparison: pd.DataFrame, expected: Sequence[str], names: Names
) -> list[OrderClaim]:
    """One claim per opponent, base model, prompt set and recogniser with two or more methods.

    Args:
        identity: rows of the identity table.
        comparison: rows of the comparison table; may be empty.
        expected: methods in the order of rising Fisher ratio.
        names: display names.
    """
    claims = []
    keys = ["recogniser", "base_model", "prompts", "versus"]
    for key, rows in sorted_groups(identity, keys):
        recogniser, base_model, prompts, versus = key
        found = {str(row["method"]): row for _, row in rows.iterrows()}
        methods = [method for method in expected if method in found]
        if len(methods) < 2:
            continue
        ratios = [_estimate(found[method], "fdr") for method in methods]
        first, last = methods[0], methods[-1]
        claims.append(
            OrderClaim(
                setting=(versus, names(base_model), names(prompts), names(recogniser)),
                ratios=tuple((names(m), r) for m, r in zip(methods, ratios, strict=True)),
                holds=all(a.value < b.value for a, b in pairwise(ratios)),
                overlap=ratios[0].overlaps(ratios[-1]),
                difference=_difference(comparison, key, last, first),
            )
        )
    return claims


def order_sentences(claims: Sequence[OrderClaim], guide: str = "") -> list[str]:
    """The order's fate over all comparisons, by each judge.

    Args:
        claims: from :func:`order_claims`.
        guide: name as shown of the recogniser inside the identity losses, "" where there is none.
    """
    judges = list(dict.fromkeys(claim.setting[3] for claim in claims))
    sentences = []
    for judge in judges:
        own = [claim for claim in claims if claim.setting[3] == judge]
        found = _order_sentences(own)
        if len(judges) > 1:
            role = "independent" if judge != guide else "inside the identity losses"
            prefix = f"Judged by {judge} ({role}): " if guide else f"Judged by {judge}: "
            found = [prefix + " ".join(found)]
        sentences += found
    return sentences


def _order_sentences(claims: Sequence[OrderClaim]) -> list[str]:
    longest = max(claims, key=lambda claim: len(claim.ratios))
    order = " < ".join(name for name, _ in longest.ratios)
    first, last = longest.ratios[0][0], longest.ratios[-1][0]
    total, holds = len(claims), sum(claim.holds for claim in claims)
    sentences = [
        f"The paper’s order of the Fisher ratio, {order}, holds in {holds} of {total} comparisons."
    ]
    known = [claim.overlap for claim in claims if claim.overlap is not None]
    if known:
        sentences.append(
            f"The separate intervals of {first} and {last} overlap in {sum(known)} of {len(known)}."
        )
    if any(claim.difference is not None for claim in claims):
        above = sum(claim.beyond_chance > 0 for claim in claims)
        below = sum(claim.beyond_chance < 0 for claim in claims)
        sentences.append(
            f"Compared on the same people, {last} separates identities better than {first} beyond "
            f"chance in {above} of {total}, worse in {below}, and the rest is undecided."
        )
    return sentences


def error_sentences(identity: pd.DataFrame, names: Names) -> list[str]:
    """Equal error rates against the real images: untuned, and the range of the fine-tuned."""
    sentences = []
    against_real = identity[identity["versus"] == "real"]
    for (recogniser, base_model, prompts), rows in sorted_groups(
        against_real, ["recogniser", "base_model", "prompts"]
    ):
        found = _lowest_and_untuned(rows, "eer")
        if found is None:
            continue
        method, lowest, untuned = found
        text = (
            f"{names(base_model)}, {names(prompts)} prompts, {names(recogniser)}: lowest equal "
            f"error rate against the real images {lowest.text()} ({names(method)})"
        )
        if untuned is not None:
            text += f"; untuned {untuned.text()}, {_against_chance(untuned, 'error')}"
        sentences.append(text + ".")
    return sentences


def quality_sentences(quality: pd.DataFrame, names: Names) -> list[str]:
    """Lowest Fréchet distance to each reference among the fine-tuned methods."""
    sentences = []
    variants = quality[~quality["base_model"].isin(REFERENCES)]
    for (base_model, prompts, reference), rows in sorted_groups(
        variants, ["base_model", "prompts", "reference"]
    ):
        found = _lowest_and_untuned(rows, "fid")
        if found is None:
            continue
        method, lowest, untuned = found
        text = (
            f"{names(base_model)}, {names(prompts)} prompts: closest to “{names(reference)}” is "
            f"{names(method)}, Fréchet distance {lowest.text(2)}"
        )
        if untuned is not None:
            text += f"; untuned {untuned.text(2)}"
        sentences.append(text + ".")
    return sentences


def recognition_sentences(recognition: pd.DataFrame, names: Names) -> list[str]:
    """Average test accuracy: the photographs, the best synthetic set, and how many beat chance."""
    real: list[tuple[str, Estimate]] = []
    synthetic: list[tuple[str, Estimate]] = []
    for (base_model, prompts, method), rows in sorted_groups(
        recognition, ["base_model", "prompts", "method"]
    ):
        average = average_accuracy(rows)
        if average is None:
            continue
        if base_model in REFERENCES:
            real.append((f"the photographs ({names(base_model)})", average))
        else:
            what = f"{names(base_model)} {names(method)}, {names(prompts)} prompts"
            synthetic.append((what, average))
    sentences = [
        f"Trained on {what}: average accuracy over the test benchmarks {average.text()}, "
        f"{_against_chance(average, 'accuracy')}."
        for what, average in real
    ]
    if synthetic:
        what, best = max(synthetic, key=lambda item: item[1].value)
        above = sum(average.low > CHANCE for _, average in synthetic)
        sentences.append(
            f"Best synthetic training set: {what}, {best.text()}, "
            f"{_against_chance(best, 'accuracy')}; {above} of {len(synthetic)} synthetic sets are "
            "better than chance."
        )
    return sentences


def average_accuracy(rows: pd.DataFrame) -> Estimate | None:
    """Accuracy averaged over seeds, then over test benchmarks; None without tests.

    The interval is over the benchmarks' pairs. All seeds meet the same pairs, so they sharpen the
    mean but not the interval.

    Args:
        rows: rows of the recognition table about one training set.
    """
    tests = rows[rows["role"] == "test"]
    if tests.empty:
        return None
    means = tests.groupby("benchmark")[["accuracy", "low", "high"]].mean()
    return Estimate(*average_with_interval(*(means[key].tolist() for key in means)))


def _lowest_and_untuned(
    rows: pd.DataFrame, metric: str
) -> tuple[str, Estimate, Estimate | None] | None:
    """Fine-tuning method of the lowest value, that value, and the untuned model's; None: no method.

    Args:
        rows: of one setting, a row per method.
        metric: a column whose lower values are better.
    """
    tuned = rows[[competes(str(method)) for method in rows["method"]]]
    if tuned.empty:
        return None
    best = tuned.iloc[int(tuned[metric].to_numpy(dtype=float).argmin())]
    untuned = rows[rows["method"] == UNTUNED]
    other = _estimate(untuned.iloc[0], metric) if len(untuned) else None
    return str(best["method"]), _estimate(best, metric), other


def _estimate(row: pd.Series, key: str) -> Estimate:
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    return Estimate(float(row[key]), float(low), float(high))


def _difference(
    comparison: pd.DataFrame, key: tuple[str, ...], method: str, minus: str
) -> Estimate | None:
    if comparison.empty:
        return None
    recogniser, base_model, prompts, versus = key
    wanted = {
        "recogniser": recogniser,
        "base_model": base_model,
        "prompts": prompts,
        "versus": versus,
        "metric": "fdr",
        "method": method,
        "minus_method": minus,
    }
    rows = comparison
    for column, value in wanted.items():
        rows = rows[rows[column].astype(str) == value]
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Estimate(float(row["difference"]), float(row["low"]), float(row["high"]))


def _against_chance(estimate: Estimate, kind: str) -> str:
    if math.isnan(estimate.low):
        return "without interval"
    if estimate.low <= CHANCE <= estimate.high:
        return "not told apart from chance (0.5)"
    better = estimate.low > CHANCE if kind == "accuracy" else estimate.high < CHANCE
    return "better than chance (0.5)" if better else "worse than chance (0.5)"
