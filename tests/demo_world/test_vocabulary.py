"""The embedded tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from pipeline_steps.demo_world.pretraining.captions import MAX_TOKENS, build_tokenizer, names
from pipeline_steps.diffusion.sampling.plan import prompts_of
from pipeline_steps.study.settings.sampling import PromptSet

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PROMPTS = Path(__file__).parents[2] / "config" / "prompts"
NAMES = names(120, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), NAMES)


def tokens(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids[1:-1])]


def test_names_are_distinct_and_the_same_for_a_seed() -> None:
    assert len(set(NAMES)) == 120
    assert names(50, 0) == NAMES[:50]
    assert names(50, 1) != NAMES[:50]
    assert all(re.fullmatch(r"([a-z][aeiou]){2,3}", name) for name in NAMES)


def test_every_name_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for name in NAMES:
        assert tokens(tokenizer, name) == [f"{name}</w>"]


@pytest.mark.parametrize("path", sorted(PROMPTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_word_of_the_prompt_sets_is_one_token(tokenizer: CLIPTokenizer, path: Path) -> None:
    prompt_set = PromptSet(**yaml.safe_load(path.read_text(encoding="utf-8")))
    texts = {prompt_set.negative_prompt}
    for gender in ("M", "F"):
        texts |= set(
            prompts_of(prompt_set, identity="ID_1", count=60, seed=0, token="sks", gender=gender)
        )
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text)
        assert [t.removesuffix("</w>") for t in tokens(tokenizer, text)] == words
        assert len(words) + 2 <= MAX_TOKENS


def test_an_unknown_word_falls_into_known_pieces(tokenizer: CLIPTokenizer) -> None:
    pieces = tokens(tokenizer, "zeppelin")
    assert len(pieces) > 1
    assert "".join(pieces) == "zeppelin</w>"


def test_ids_follow_from_the_words_alone(tokenizer: CLIPTokenizer) -> None:
    """A text encoder that goes on in another process finds every word where it was."""
    ids = tokenizer(f"photo of {NAMES[0]} person, night club {NAMES[-1]}").input_ids
    assert ids == [1010, 933, 910, 792, 932, 267, 901, 714, 849, 1011]


def test_the_folder_opens_as_a_clip_tokenizer(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    build_tokenizer(tmp_path, NAMES)
    opened = CLIPTokenizer.from_pretrained(str(tmp_path))
    text = "Photo of SKS person, close-up portrait"
    assert opened(text).input_ids == tokenizer(text).input_ids
    padded = opened(text, padding="max_length").input_ids
    assert len(padded) == MAX_TOKENS
    assert padded[-1] == opened.eos_token_id
