"""Prompts of an identity's images, the same for every method.

Draws are keyed by (study seed, prompt set, identity) and know nothing of base model or method, so
the rows of a results table differ by the method alone. Source: ID-Booth, supplement; the version of
FG 2025.
"""

from __future__ import annotations

import itertools

import numpy as np

from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.settings.diffusion import PromptSet


def draw_prompts(
    prompt_set: PromptSet,
    *,
    identity: str,
    count: int,
    seed: int,
    token: str | None,
    gender: str | None = None,
) -> list[str]:
    """Prompts of the images 0 ... count - 1 of one identity.

    Args:
        prompt_set: Template and slots.
        identity: Name of the identity, part of the seed.
        count: Number of prompts; the first n are the same for every count >= n.
        seed: The study seed.
        token: Word that stands for the identity; None drops it (an untuned base model).
        gender: The identity table's gender, e.g. "M"; unknown or None: neutral wording.

    Returns:
        ``count`` texts.
    """
    constant = {"token": token or "", "gender": prompt_set.genders.get(gender or "", "")}
    drawn = zip(
        _deal(prompt_set, identity, count, seed),
        _throw(prompt_set, identity, count, seed),
        strict=True,
    )
    return [
        _tidy(prompt_set.template.format(**constant, **dealt, **thrown)) for dealt, thrown in drawn
    ]


def _deal(prompt_set: PromptSet, identity: str, count: int, seed: int) -> list[dict[str, str]]:
    """Deck slots: all combinations shuffled; a used-up deck is shuffled anew."""
    slots = {name: slot for name, slot in prompt_set.slots.items() if slot.draw == "deck"}
    deck = list(
        itertools.product(
            *(
                [slot.filled(value.text) for value in slot.entries() for _ in range(value.times)]
                for slot in slots.values()
            )
        )
    )
    generator = numpy_generator(seed, "prompts", prompt_set.name, identity, "deck")
    hands: list[dict[str, str]] = []
    while len(hands) < count:
        for card in generator.permutation(len(deck)):
            hands.append(dict(zip(slots, deck[card], strict=True)))
    return hands[:count]


def _throw(prompt_set: PromptSet, identity: str, count: int, seed: int) -> list[dict[str, str]]:
    """Independent slots: uniform or by probability, from a stream per slot."""
    throws: list[dict[str, str]] = [{} for _ in range(count)]
    for name, slot in prompt_set.slots.items():
        if slot.draw != "independent":
            continue
        entries = slot.entries()
        generator = numpy_generator(seed, "prompts", prompt_set.name, identity, name)
        if entries[0].probability is None:
            texts = [slot.filled(value.text) for value in entries for _ in range(value.times)]
            for throw in throws:
                throw[name] = texts[int(generator.integers(len(texts)))]
            continue
        steps = np.cumsum([value.probability for value in entries])
        for throw in throws:
            # The last step may be a hair below 1.
            place = int(np.searchsorted(steps, generator.random() * steps[-1], side="right"))
            throw[name] = slot.filled(entries[place].text)
    return throws


def _tidy(text: str) -> str:
    """Single spaces, none before a comma: what a dropped word leaves behind."""
    return " ".join(text.split()).replace(" ,", ",")
