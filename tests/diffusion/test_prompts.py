"""The three prompt sets are the published ones."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline_steps.diffusion.sampling.plan import prompts_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.sampling import PromptSet, read_prompt_set
from tests.published import PLACES

FOLDER = Path(__file__).parents[2] / "config" / "prompts"
EXPRESSIONS = {"neutral", "happy", "sad", "angry", "shocked"}


def prompts(
    name: str,
    count: int = 21,
    identity: str = "ID_4",
    token: str | None = "sks",
    gender: str | None = "F",
) -> list[str]:
    prompt_set = read_prompt_set(FOLDER / f"{name}.yaml")
    return prompts_of(
        prompt_set, identity=identity, count=count, seed=3, token=token, gender=gender
    )


def test_base_is_one_prompt() -> None:
    assert set(prompts("base")) == {"photo of sks person, close-up portrait"}


def test_complex_draws_expression_and_place_without_replacement() -> None:
    pattern = re.compile(
        r"photo of sks person, close-up portrait, (\w+) expression(?:, busy ([\w ]+) environment)?"
    )
    whole = prompts("complex", 55)
    parts = [match.groups() for match in map(pattern.fullmatch, whole) if match]
    assert len(parts) == 55
    assert set(parts) == {(e, p) for e in EXPRESSIONS for p in {*PLACES, None}}
    assert prompts("complex", 21) == whole[:21]
    assert Counter(prompts("complex", 100)).most_common(1)[0][1] == 2
    assert prompts("complex", identity="ID_5") != prompts("complex")


def test_fg2025_has_each_place_twice_and_none_once() -> None:
    pattern = re.compile(
        r"face (portrait|side-portrait) photo of female sks person(?:, ([\w ]+) background)?"
    )
    parts = [match.groups() for match in map(pattern.fullmatch, prompts("fg2025")) if match]
    assert Counter(place for _, place in parts) == {None: 1, **dict.fromkeys(PLACES, 2)}
    shares = Counter(
        match.group(1)
        for i in range(60)
        for match in map(pattern.fullmatch, prompts("fg2025", identity=f"ID_{i}"))
        if match
    )
    assert shares["side-portrait"] / shares.total() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["base", "complex", "fg2025"])
def test_untuned_prompts_are_the_same_without_the_token(name: str) -> None:
    tuned = prompts(name)
    assert prompts(name, token=None) == [text.replace("sks ", "") for text in tuned]


def test_a_missing_gender_gives_neutral_wording() -> None:
    male = prompts("fg2025", gender="M")
    assert all(" male sks person" in text for text in male)
    for gender in (None, "", "X"):
        assert prompts("fg2025", gender=gender) == [text.replace("male ", "") for text in male]


@pytest.mark.parametrize("name", ["base", "complex", "fg2025"])
def test_the_negative_prompt_is_the_published_one(name: str) -> None:
    assert read_prompt_set(FOLDER / f"{name}.yaml").negative_prompt == (
        "cartoon, cgi, render, illustration, painting, drawing, black and white, "
        "bad body proportions, landscape"
    )


def test_broken_prompt_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="missing"):
        read_prompt_set(tmp_path / "none.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntemplate: photo of {token} in {place}\n")
    with pytest.raises(StepError, match="place"):
        read_prompt_set(path)
    path.write_text("name: x\ntemplate: photo of a person\n")
    with pytest.raises(StepError, match="token"):
        read_prompt_set(path)
    with pytest.raises(ValueError, match="is not in the template"):
        PromptSet.model_validate(
            {
                "name": "x",
                "template": "{token}",
                "slots": {"place": {"draw": "deck", "values": ["here"]}},
            }
        )


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_prompt_set_is_one_file(tmp_path: Path) -> None:
    """With a slot by probability and a deck; its name is the file's."""
    text = """
template: "{style} photo of {token} person{hat}"
slots:
  style:
    draw: independent
    values: [{text: sharp, probability: 0.8}, {text: blurred, probability: 0.2}]
  hat:
    draw: deck
    phrase: ", wearing a {} hat"
    values: ["", {text: red, times: 2}]
negative_prompt: "cartoon"
"""
    prompt_set = read_prompt_set(written(tmp_path, text))
    assert (prompt_set.name, prompt_set.negative_prompt) == ("mine", "cartoon")
    drawn = prompts_of(prompt_set, identity="ID_1", count=3000, seed=0, token="sks")
    assert set(drawn) == {
        f"{style} photo of sks person{hat}"
        for style in ("sharp", "blurred")
        for hat in ("", ", wearing a red hat")
    }
    # Four standard deviations of 3000 draws at 0.8.
    assert sum("sharp" in prompt for prompt in drawn) / 3000 == pytest.approx(0.8, abs=0.03)
    assert sum("a red hat" in prompt for prompt in drawn) == 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("template: photo of {token}, {where}", r"\{where\} in the template is no slot"),
        ("template: photo of a person", r"must hold \{token\}"),
        ("template: photo of {token} {}", "must name a slot"),
        ("template: photo of {token", "expected '}'"),
        ("name: other\ntemplate: '{token}'", "its name is 'other'; name it as its file"),
        ("- {token}", "expected keys with values, found a list"),
        ("template: '{token}{a}'\nslots: {a: {draw: dice, values: [x]}}", "slots.a.draw"),
        ("template: '{token}{a}'\nslots: {a: {draw: deck, values: []}}", "slots.a.values"),
        (
            "template: '{token}{a}'\nslots: {a: {draw: deck, phrase: x, values: [y]}}",
            "'x' must hold",
        ),
        (
            "template: '{token}{a}'\nslots: {a: {draw: deck, values: [{text: x, probability: 1}]}}",
            "a deck knows no probability",
        ),
        (
            "template: '{token}{a}'\n"
            "slots: {a: {draw: independent, values: [{text: x, probability: 1}, y]}}",
            "every value of the slot a probability",
        ),
        (
            "template: '{token}{a}'\n"
            "slots: {a: {draw: independent, values: [{text: x, probability: 0.9}]}}",
            "add up to 0.9, not to 1",
        ),
        ("template: '{token}'\nnegativ: x", "unknown key 'negativ'"),
    ],
)
def test_mistakes_in_a_prompt_set_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StepError, match=message) as caught:
        read_prompt_set(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value)
