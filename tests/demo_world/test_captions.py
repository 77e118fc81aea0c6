"""Captions say nothing that is not in the photograph, in words that prompts use."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from pipeline_steps.demo_world.pretraining.captions import NEGATIVE_PROMPT, caption
from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES


def facts(rng: np.random.Generator) -> dict[str, int | float | bool]:
    return {
        "male": bool(rng.integers(2)),
        "expression": int(rng.integers(len(EXPRESSIONS))),
        "place": int(rng.integers(len(PLACES))),
        "yaw": float(rng.uniform(-45, 45)),
    }


def test_captions_are_true() -> None:
    rng = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(3000):
        truth = facts(rng)
        text = caption(rng, name="bodi", **truth)  # type: ignore[arg-type]
        if text in ("", NEGATIVE_PROMPT):
            seen["nothing"] += 1
            continue
        assert text.startswith(("photo of ", "face "))
        for gender in re.findall(r"\b(?:fe)?male\b", text):
            assert gender == ("male" if truth["male"] else "female")
            seen["gender"] += 1
        for mood in re.findall(r"(\w+) expression", text):
            assert mood == EXPRESSIONS[int(truth["expression"])]
            seen["expression"] += 1
        for place in re.findall(r", (?:busy )?([a-z ]+) (?:environment|background)", text):
            assert place == PLACES[int(truth["place"])] != "none"
            seen["place"] += 1
        if text.startswith("face "):
            assert ("side-portrait" in text) == (abs(float(truth["yaw"])) > 18)
            seen["side-portrait"] += "side-portrait" in text
        seen["name"] += "bodi person" in text
    assert seen["nothing"] / 3000 < 0.2
    assert all(seen[k] > 300 for k in ("gender", "expression", "place", "side-portrait", "name"))


def test_every_prompt_of_the_study_is_a_caption_of_what_it_asks_for() -> None:
    rng = np.random.default_rng(1)

    def captions(name: str | None, expression: str, place: str, yaw: float = 0.0) -> set[str]:
        return {
            caption(
                rng,
                name=name,
                male=False,
                expression=EXPRESSIONS.index(expression),
                place=PLACES.index(place),
                yaw=yaw,
            )
            for _ in range(400)
        }

    assert "photo of bodi person, close-up portrait" in captions("bodi", "happy", "none")
    assert (
        "photo of bodi person, close-up portrait, angry expression, busy night club environment"
        in captions("bodi", "angry", "night club")
    )
    assert "photo of person, close-up portrait, sad expression" in captions(None, "sad", "none")
    assert "face side-portrait photo of female bodi person, beach background" in captions(
        "bodi", "sad", "beach", yaw=30.0
    )
    assert "photo of a person" in captions(None, "neutral", "none")
    assert NEGATIVE_PROMPT in captions(None, "neutral", "none")
    assert any("sks person" in text for text in captions(None, "neutral", "none"))
