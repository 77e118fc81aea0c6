"""Captions of rendered photographs in the words of the study's prompt sets: prompts then steer.

A part of the pretraining people carry a name each, as a large model knows celebrities: a rare word
then has a path to an identity.
"""

from __future__ import annotations

import numpy as np

from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.seeds import numpy_generator

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
        expression, place: index into EXPRESSIONS, into PLACES.
        yaw: degrees.
    """
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return ""
    if kind < EMPTY_SHARE + NEGATIVE_SHARE:
        return NEGATIVE_PROMPT
    word = name if name is not None and rng.random() < 0.85 else None
    if word is None and rng.random() < 0.1:
        word = PLACEHOLDER
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


NEGATIVE_PROMPT = (
    "cartoon, cgi, render, illustration, painting, drawing, black and white, "
    "bad body proportions, landscape"
)
PLACEHOLDER = "sks"


def names(count: int, seed: int) -> list[str]:
    """Distinct made-up names of two or three syllables; more names keep the first ones."""
    rng = numpy_generator(seed, "names")
    consonants, vowels = "bdfgjklmnprstvz", "aeiou"
    taken: dict[str, None] = {}
    while len(taken) < count:
        syllables = 2 + int(rng.integers(2))
        word = "".join(
            rng.choice(list(consonants)) + rng.choice(list(vowels)) for _ in range(syllables)
        )
        if word != PLACEHOLDER:
            taken.setdefault(word)
    return list(taken)
