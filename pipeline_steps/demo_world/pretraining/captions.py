"""Captions of rendered photographs in the words of the study's prompt sets: prompts then steer.

A part of the pretraining people carry a name each, as a large model knows celebrities: a rare word
then has a path to an identity.

The text encoder's words are a byte-level BPE in CLIP's format, learned from the prompts: every word
that a prompt set uses, and every name, is one token; anything else falls apart into pieces.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.io.atomic import write_text
from pipeline_steps.seeds import numpy_generator

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


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


MAX_TOKENS = 32
NEGATIVE_PROMPT = (
    "cartoon, cgi, render, illustration, painting, drawing, black and white, "
    "bad body proportions, landscape"
)
PLACEHOLDER = "sks"
_WORDS = (
    "photo of a person man woman male female close up portrait side face expression busy "
    "environment background in the with , - . sks"
)
_START, _END = "<|startoftext|>", "<|endoftext|>"


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


def build_tokenizer(folder: Path, name_words: Sequence[str]) -> CLIPTokenizer:
    """Learn the BPE merges, write the tokenizer's files, and open them.

    Args:
        folder: for vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.
        name_words: words beside the prompts' own that are to be one token each.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    words = [*_WORDS.split(), *" ".join(EXPRESSIONS).split(), *" ".join(PLACES).split()]
    words += [*NEGATIVE_PROMPT.replace(",", " ").split(), *name_words]
    merges = _learn_merges(words)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges)]
    distinct = dict.fromkeys([*tokens, _START, _END])
    vocabulary = {token: index for index, token in enumerate(distinct)}
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        **special,
    }
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1))
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=1))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder))
    return tokenizer


def _learn_merges(words: Sequence[str]) -> list[str]:
    """Merges "a b", the most frequent pair first, until every word is one token.

    Their order, and so each token's id, follows from the words alone, which is not so of the
    tokenizers library's trainer: a text encoder that goes on must find its words where they were.
    """
    spellings = Counter(" ".join(word) + "</w>" for word in words)
    merges: list[str] = []
    while True:
        pairs: Counter[str] = Counter()
        for spelling, count in spellings.items():
            for pair in pairwise(spelling.split()):
                pairs[" ".join(pair)] += count
        if not pairs:
            return merges
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        apart = re.compile(rf"(?<!\S){re.escape(merges[-1])}(?!\S)")
        whole = merges[-1].replace(" ", "")
        spellings = Counter({apart.sub(whole, s): count for s, count in spellings.items()})
