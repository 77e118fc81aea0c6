"""Captions of rendered photographs in the words of the study's prompt sets, so that prompts steer the base model.

A part of the pretraining people carry a name each, as a large model knows celebrities: a rare word then has a path to
an identity. Captions are drawn anew at every training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline_steps.demo_world.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.vocabulary import NEGATIVE_PROMPT, PLACEHOLDER

SIDE_YAW = 18.0


def caption(
    rng: np.random.Generator,
    *,
    name: str | None,
    male: bool,
    expression: int,
    place: int,
    yaw: float,
) -> str:
    """One caption that is true of the photograph; 12 % are empty or the negative prompt (guidance's other side).

    Args:
        rng: source of the template.
        name: the person's name word, or None.
        male: gender word to use.
        expression: index into EXPRESSIONS.
        place: index into PLACES.
        yaw: degrees; beyond 18 either way the portrait is a "side-portrait".
    """
    kind = rng.random()
    if kind < 0.06:
        return ""
    if kind < 0.12:
        return NEGATIVE_PROMPT
    word = (
        name
        if name is not None and rng.random() < 0.85
        else (PLACEHOLDER if rng.random() < 0.1 else None)
    )
    who = f"{word} person" if word else "person"
    gender = "male " if male else "female "
    if kind < 0.24:
        return f"photo of {'' if word else 'a '}{gender if rng.random() < 0.3 else ''}{who}"
    where, mood = PLACES[place], EXPRESSIONS[expression]
    if kind < 0.62:
        text = f"photo of {gender if rng.random() < 0.2 else ''}{who}, close-up portrait"
        if rng.random() < 0.9:
            text += f", {mood} expression"
        if where != "none" and rng.random() < 0.95:
            text += f", busy {where} environment"
        return text
    side = "side-" if abs(yaw) > SIDE_YAW else ""
    text = f"face {side}portrait photo of {gender if rng.random() < 0.85 else ''}{who}"
    if where != "none":
        text += f", {where} background"
    return text


def caption_batch(
    rng: np.random.Generator,
    index: Sequence[int] | np.ndarray,
    *,
    names: Sequence[str],
    identity: np.ndarray,
    male: np.ndarray,
    expression: np.ndarray,
    place: np.ndarray,
    yaw: np.ndarray,
) -> list[str]:
    """Captions of the photographs at `index`; identity k carries `names[k]` when there are that many."""
    return [
        caption(
            rng,
            name=names[identity[i]] if identity[i] < len(names) else None,
            male=bool(male[i]),
            expression=int(expression[i]),
            place=int(place[i]),
            yaw=float(yaw[i]),
        )
        for i in index
    ]
