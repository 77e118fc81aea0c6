"""Which recognisers judge on their own, and which one already guided the training of the images."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pipeline_steps.evidence.tables.layout import competes
from pipeline_steps.evidence.tables.names import Names
from pipeline_steps.io.weights import Weights


def guide_of(weights: Mapping[str, Weights]) -> str:
    """Name of the recogniser inside the identity losses, "" where no method has one.

    Args:
        weights: weights by role of a frozen configuration.
    """
    return weights["recogniser"].name if "recogniser" in weights else ""


def judge_note(recogniser: str, guide: str) -> str:
    """What a caption adds to a recogniser's name.

    Args:
        recogniser: the judge.
        guide: the recogniser inside the identity losses, "" where no method has one.
    """
    if not guide:
        return ""
    if recogniser == guide:
        return (
            ", the recogniser inside the identity losses: methods that it guided were trained to "
            "please this judge"
        )
    return ", an independent judge, which took no part in fine-tuning"


def judge_sentences(identity: pd.DataFrame, names: Names, guide: str) -> list[str]:
    """Who judges, who of them is independent, and whether they agree on the best method.

    Args:
        identity: rows of the identity table.
        names: display names.
        guide: the recogniser inside the identity losses, "" where no method has one.
    """
    judges = [str(judge) for judge in dict.fromkeys(identity["recogniser"])]
    if guide in judges and len(judges) == 1:
        return [
            f"The only judge is {names(guide)}, the recogniser inside the identity losses: methods "
            "that it guided were trained to please it. Name an independent recogniser under "
            "score.identity.recognisers to have both."
        ]
    if len(judges) < 2:
        return []
    sentences = []
    if guide in judges:
        others = ", ".join(names(judge) for judge in judges if judge != guide)
        sentences.append(
            f"Inside the identity losses sat {names(guide)}, so methods that it guided were "
            f"trained to please it; {others} took no part. Where they differ, believe the latter."
        )
    agree = total = 0
    tuned = identity[[competes(str(method)) for method in identity["method"]]]
    for _, rows in tuned.groupby(["base_model", "prompts", "versus"]):
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
