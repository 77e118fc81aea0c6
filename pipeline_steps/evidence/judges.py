"""Which recognisers judge on their own, and which one already guided the training of the images."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline_steps.settings.base import Weights


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
    if is_guide(recogniser, guide):
        return (
            ", the recogniser inside the identity losses: methods that it guided were trained to "
            "please this judge"
        )
    return ", an independent judge, which took no part in fine-tuning"


def is_guide(recogniser: str, guide: str) -> bool:
    """Whether this judge guided the training of the images that it judges."""
    return recogniser == guide
