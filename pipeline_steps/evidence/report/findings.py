"""What the tables say, in sentences with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from pipeline_steps.evidence.names import (
    SETS,
    SETTING,
    WORST_TO_BEST,
    Names,
    competes,
    sorted_groups,
)
from pipeline_steps.evidence.scores.groups import COMPARED, NONE, worst_and_best
from pipeline_steps.evidence.tables.kinds import average_accuracy
from pipeline_steps.evidence.tables.table import Estimate, estimate_of
from pipeline_steps.naming import REAL, REFERENCES, UNTUNED
from pipeline_steps.study.source import NOT_APPLICABLE

GROUP_MEASURES = {
    "faces": "share of images with a face",
    "eer": "equal error rate",
    "fnmr": "false non-match rate",
    "fmr": "false match rate",
    "fdr": "Fisher ratio",
    "quality_mean": "face quality",
}
CHANCE = 0.5  # accuracy and equal error rate of guessing


@dataclass(frozen=True)
class OrderClaim:
    """Whether the Fisher ratios of one comparison rise in the expected order."""

    setting: tuple[str, str, str, str]  # compared with, base model, prompts, recogniser, as shown
    ratios: tuple[tuple[str, Estimate], ...]  # by method, as shown, in the expected order
    holds: bool  # each is larger than the one before
    overlap: bool | None  # of the first and last interval; None without intervals
    difference: Estimate | None  # last minus first, paired; None where it was not computed


def findings(
    frames: Mapping[str, pd.DataFrame], claims: Sequence[OrderClaim], names: Names
) -> dict[str, list[str]]:
    """Sentences by the question that they answer, from the study's tables by kind."""
    return {
        "Who judges?": judge_sentences(frames["identity"], names),
        "Do the generated people look like the consenting people?": order_sentences(claims, names),
        "How often are they confused?": error_sentences(frames["identity"], names),
        "How close are the images to real ones?": quality_sentences(frames["quality"], names),
        "Do they show the prompt, and how near are they to the photographs?": likeness_sentences(
            frames, names
        ),
        "Are they good for training recognition?": recognition_sentences(
            frames["recognition"], names
        ),
        "Whom does it fail?": group_sentences(frames["groups"], names),
    }


def judge_sentences(identity: pd.DataFrame, names: Names) -> list[str]:
    """Who judges, who of them is independent, and whether they agree on the best method."""
    judges, guide = [str(judge) for judge in dict.fromkeys(identity["recogniser"])], names.guide
    if judges == [guide]:
        return [
            f"The only judge is {names(guide)}, the guide of training or sampling: methods "
            "that it guided were made to please it. Name an independent recogniser under "
            "score.identity.recognisers to have both."
        ]
    if len(judges) < 2:
        return []
    sentences = []
    if guide in judges:
        others = ", ".join(names(judge) for judge in judges if judge != guide)
        sentences.append(
            f"The guide of training or sampling was {names(guide)}, so methods that it guided were "
            f"made to please it; {others} took no part. Where they differ, believe the latter."
        )
    agree = total = 0
    for _, rows in _tuned(identity).groupby([*SETTING, "versus"]):
        best = {
            str(own.sort_values("fdr", na_position="first")["method"].iloc[-1])
            for _, own in rows.groupby("recogniser")
            if own["fdr"].notna().any()
        }
        if rows["method"].nunique() > 1 and best:
            total += 1
            agree += len(best) == 1
    if total:
        sentences.append(
            f"The judges agree on the method of the highest Fisher ratio in {agree} of {total} "
            "comparisons."
        )
    return sentences


def order_claims(
    identity: pd.DataFrame, comparison: pd.DataFrame, expected: Sequence[str], names: Names
) -> list[OrderClaim]:
    """One claim per opponent, base model, prompt set and recogniser with two or more methods.

    Args:
        identity, comparison: rows of these tables; there may be none of the comparison.
        expected: methods in the order of rising Fisher ratio.
        names: display names.
    """
    claims = []
    by = ["recogniser", *SETTING, "versus"]
    for key, rows in sorted_groups(identity, by):
        recogniser, base_model, prompts, versus = key
        found = {str(row["method"]): row for _, row in rows.iterrows()}
        methods = [m for m in expected if m in found and not math.isnan(found[m]["fdr"])]
        if len(methods) < 2:
            continue
        ratios = [estimate_of(found[method], "fdr") for method in methods]
        wanted = dict(zip(by, key, strict=True)) | {"metric": "fdr"}
        wanted |= {"method": methods[-1], "minus_method": methods[0]}
        claims.append(
            OrderClaim(
                setting=(versus, names(base_model), names(prompts), names(recogniser)),
                ratios=tuple((names(m), r) for m, r in zip(methods, ratios, strict=True)),
                holds=all(a.value < b.value for a, b in pairwise(ratios)),
                overlap=ratios[0].overlaps(ratios[-1]),
                difference=_difference(comparison, wanted),
            )
        )
    return claims


def order_sentences(claims: Sequence[OrderClaim], names: Names) -> list[str]:
    """The order's fate over all comparisons, by each judge."""
    judges = list(dict.fromkeys(claim.setting[3] for claim in claims))
    sentences = []
    for judge in judges:
        found = _order_sentences([claim for claim in claims if claim.setting[3] == judge])
        if len(judges) > 1:
            guides = judge == names(names.guide)
            role = " (the guide)" if guides else " (independent)"
            found = [f"Judged by {judge}{role if names.guide else ''}: {' '.join(found)}"]
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
    decided = [claim.difference.beyond(0.0) for claim in claims if claim.difference is not None]
    if decided:
        sentences.append(
            f"Compared on the same people, {last} separates identities better than {first} beyond "
            f"chance in {decided.count(1)} of {total}, worse in {decided.count(-1)}, and the rest "
            "is undecided."
        )
    return sentences


def error_sentences(identity: pd.DataFrame, names: Names) -> list[str]:
    """Equal error rates against the real images: untuned, and the range of the fine-tuned."""
    sentences = []
    against_real = identity[identity["versus"] == "real"]
    for (recogniser, *setting), rows in sorted_groups(against_real, ["recogniser", *SETTING]):
        for method, lowest, untuned in _best_and_untuned(rows, "eer"):
            told = f"{lowest.text()} ({names(method)})"
            if untuned:
                told += f"; untuned {untuned.text()}, {_against_chance(untuned, -1)}"
            sentences.append(
                f"{_prompts_of(setting, names)}, {names(recogniser)}: lowest equal error rate "
                f"against the real images {told}."
            )
    return sentences


def quality_sentences(quality: pd.DataFrame, names: Names) -> list[str]:
    """Lowest Fréchet distance to each reference among the fine-tuned methods."""
    sentences = []
    variants = quality[~quality["base_model"].isin(REFERENCES)]
    for (*setting, reference), rows in sorted_groups(variants, [*SETTING, "reference"]):
        for method, lowest, untuned in _best_and_untuned(rows, "fid"):
            compared = _untuned(untuned, 2, "; ")
            sentences.append(
                f"{_prompts_of(setting, names)}: closest to “{names(reference)}” is "
                f"{names(method)}, Fréchet distance {lowest.text(2)}{compared}."
            )
    return sentences


def likeness_sentences(frames: Mapping[str, pd.DataFrame], names: Names) -> list[str]:
    """Highest prompt score, and smallest distance and best agreement with the photographs."""
    sentences = []
    of_sets = frames["quality"].drop_duplicates(list(SETS))
    for (*setting,), rows in sorted_groups(of_sets, SETTING):
        for method, best, untuned in _best_and_untuned(rows, "prompt_score", highest=True):
            sentences.append(
                f"{_prompts_of(setting, names)}: what prompts ask for is shown best by "
                f"{names(method)}, prompt score {best.text(2)}{_untuned(untuned, 2)}."
            )
    identity = frames["identity"]
    judged = identity[(identity["versus"] == "real") & (identity["recogniser"] != names.guide)]
    for (judge, *setting), rows in sorted_groups(judged, ["recogniser", *SETTING]):
        for method, best, untuned in _best_and_untuned(rows, "reference_distance"):
            sentences.append(
                f"{_prompts_of(setting, names)}, {names(judge)}: nearest to the photographs is "
                f"{names(method)}, distance {best.text(2)}{_untuned(untuned, 2)}."
            )
    for (*setting,), rows in sorted_groups(frames["audit"], SETTING):
        for method, best, untuned in _best_and_untuned(rows, "psnr", highest=True):
            ssim = estimate_of(rows[rows["method"] == method].iloc[0], "ssim").value
            sentences.append(
                f"{_prompts_of(setting, names)}: pixels come closest to a photograph by "
                f"{names(method)}, PSNR {best.text(1)} dB{_untuned(untuned, 1)}, SSIM {ssim:.2f}."
            )
    return sentences


def recognition_sentences(recognition: pd.DataFrame, names: Names) -> list[str]:
    """Average test accuracy: of the photographs, alone and with images, and of the best synthetic
    set, and how many of these beat chance."""
    sentences: list[str] = []
    synthetic: list[tuple[str, Estimate]] = []
    for (base_model, prompts, method), rows in sorted_groups(recognition, SETS):
        average = average_accuracy(rows)
        if average is None:
            continue
        asked = "" if prompts == NOT_APPLICABLE else f", {names(prompts)} prompts"
        what = f"{names(base_model)} {names(method)}{asked}"
        if base_model in REFERENCES:
            sentences.append(
                f"Trained on the photographs ({names(base_model)}): average accuracy over the test "
                f"benchmarks {average.text()}, {_against_chance(average)}."
            )
        elif REAL in base_model.split("+"):
            sentences.append(
                f"Trained on the photographs and images, {what}: {average.text()}, "
                f"{_against_chance(average)}."
            )
        else:
            synthetic.append((what, average))
    if synthetic:
        what, best = max(synthetic, key=lambda item: item[1].value)
        above = sum(average.low > CHANCE for _, average in synthetic)
        sentences.append(
            f"Best synthetic training set: {what}, {best.text()}, {_against_chance(best)}; {above} "
            f"of {len(synthetic)} synthetic sets are better than chance."
        )
    return sentences


def group_sentences(groups: pd.DataFrame, names: Names) -> list[str]:
    """Where the worst group of people is told apart from the best, by each kind of groups."""
    sentences = []
    for (by, judge), rows in sorted_groups(groups, ("by", "recogniser")):
        ratios = rows[rows["group"] == WORST_TO_BEST]
        told = f"By {by.replace('_', ' ')}, {names(judge)}: "
        if ratios.empty:
            sentences.append(f"{told}no two groups have people enough to be compared.")
            continue
        beyond: list[tuple[float, str]] = []
        for (*source,), own in sorted_groups(rows, SETS):
            parts = own[own["group"] != WORST_TO_BEST].set_index("group")
            for _, row in own[own["group"] == WORST_TO_BEST].iterrows():
                for key in COMPARED:
                    ratio = estimate_of(row, key)
                    if not ratio.beyond(1.0):
                        continue
                    values = {str(group): float(parts[key][group]) for group in parts.index}
                    worst, best = worst_and_best(values, key)
                    where = ", ".join(map(names, source))
                    what = f"{GROUP_MEASURES[key]} of {worst} over {best}, {where}: "
                    far = abs(math.log(ratio.value)) if ratio.value > 0 else math.inf
                    beyond.append((far, what + ratio.text(2)))
        total = len(ratios)
        apart = sum(not str(note).endswith(NONE) for note in ratios["note"])
        told += (
            f"the worst group is told apart from the best by some measure in {apart} of {total} "
            "sets of images"
        )
        sentences.append(f"{told}; furthest: {max(beyond)[1]}." if beyond else f"{told}.")
    return sentences


def _best_and_untuned(
    rows: pd.DataFrame, metric: str, *, highest: bool = False
) -> Iterator[tuple[str, Estimate, Estimate | None]]:
    """Of one setting's methods, if any, that of the best value, it, and the untuned model's."""
    rows = rows[rows[metric].notna()]
    tuned, untuned = _tuned(rows), rows[rows["method"] == UNTUNED]
    if len(tuned):
        values = tuned[metric].to_numpy(dtype=float)
        best = tuned.iloc[int(values.argmax() if highest else values.argmin())]
        other = estimate_of(untuned.iloc[0], metric) if len(untuned) else None
        yield str(best["method"]), estimate_of(best, metric), other


def _untuned(estimate: Estimate | None, digits: int, before: str = ", ") -> str:
    return f"{before}untuned {estimate.text(digits)}" if estimate else ""


def _tuned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[competes(str(method)) for method in rows["method"]]]


def _difference(comparison: pd.DataFrame, wanted: Mapping[str, str]) -> Estimate | None:
    rows = comparison
    for column, value in wanted.items() if len(comparison) else ():
        rows = rows[rows[column].astype(str) == value]
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Estimate(float(row["difference"]), float(row["low"]), float(row["high"]))


def _prompts_of(setting: Sequence[str], names: Names) -> str:
    if setting[1] == NOT_APPLICABLE:  # sets of others
        return names(setting[0])
    return f"{', '.join(map(names, setting))} prompts"


def _against_chance(estimate: Estimate, better: int = 1) -> str:
    """In words; `better`: 1 where more is better, -1 where less is."""
    if math.isnan(estimate.low):
        return "without interval"
    words = {better: "better than chance (0.5)", -better: "worse than chance (0.5)"}
    return words.get(estimate.beyond(CHANCE), "not told apart from chance (0.5)")
