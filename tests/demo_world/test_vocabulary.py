"""The tokenizer that ships: what captions and prompts say are words of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from pipeline_steps.demo_world.pretrain import base_model
from pipeline_steps.demo_world.pretraining.captions import names
from pipeline_steps.demo_world.pretraining.plan import PLANS
from pipeline_steps.diffusion.sampling.plan import prompts_of
from pipeline_steps.study.settings.sampling import PromptSet

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PROMPTS = Path(__file__).parents[2] / "config" / "prompts"
NAMES = names(PLANS["cpu"].named, PLANS["cpu"].seed)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    opened: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(base_model() / "tokenizer"))
    return opened


def tokens(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids[1:-1])]


def test_names_are_distinct_and_the_same_for_a_seed() -> None:
    assert len(set(NAMES)) == 500
    assert names(50, 2026) == NAMES[:50]
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
        assert len(words) + 2 <= tokenizer.model_max_length


def test_an_unknown_word_falls_into_known_pieces(tokenizer: CLIPTokenizer) -> None:
    pieces = tokens(tokenizer, "zeppelin")
    assert len(pieces) > 1
    assert "".join(pieces) == "zeppelin</w>"
