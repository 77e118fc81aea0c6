"""Captions of rendered photographs in the words of the study's prompt sets: prompts then steer.

A part of the pretraining people carry a name each, as a large model knows celebrities: a rare word
then has a path to an identity. Captions are drawn anew at every training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline_steps.demo_world.rendering.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.rendering.vocabulary import NEGATIVE_PROMPT, PLACEHOLDER

SIDE_YAW = 18.0  # degrees; beyond it either way a portrait is a "side-portrait"
EMPTY_SHARE, NEGATIVE_SHARE = 0.06, 0.06  # of captions, for guidance's other side


def caption(
    rng: np.random.Generator,
    *,
    name: str | None,
    male: bool,
    expression: int,
    place: int,
    yaw: float,
) -> str:
    """One caption that is true of the photograph, or nothing, or the negative prompt.

    Args:
        rng: source of the template.
        name: the person's name word, or None.
        male: gender word to use.
        expression: index into EXPRESSIONS.
        place: index into PLACES.
        yaw: degrees.
    """
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return ""
    if kind < EMPTY_SHARE + NEGATIVE_SHARE:
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
    """Captions of some photographs.

    Args:
        rng: source of the templates.
        index: of the photographs, [b].
        names: identity k carries `names[k]` when there are that many.
        identity, male, expression, place, yaw: facts of all n photographs, [n] each, as `caption`
            takes them.

    Returns:
        b texts.
    """
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
