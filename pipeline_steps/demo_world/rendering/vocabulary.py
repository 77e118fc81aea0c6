"""The embedded text encoder's words: a byte-level BPE in CLIP's format, learned from the prompts.

Every word that a prompt set uses, and every name, is one token; anything else falls apart into
pieces, as with CLIP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.demo_world.rendering.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.io.atomic import write_text
from pipeline_steps.seeds import numpy_generator

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

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
    """Made-up names of two or three syllables.

    Args:
        count: how many; all are distinct, and the first n are the same for every count >= n.
        seed: of the draws.
    """
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
    from transformers import CLIPTokenizer

    words = [*_WORDS.split(), *" ".join(EXPRESSIONS).split(), *" ".join(PLACES).split()]
    words += [*NEGATIVE_PROMPT.replace(",", " ").split(), *name_words]
    alphabet, merges = _learn_merges(words)
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges)]
    vocabulary = {
        token: index for index, token in enumerate(dict.fromkeys([*tokens, _START, _END]))
    }
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


def _learn_merges(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The alphabet of bytes, and merges ("a b") until every word is one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_END)
    )
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=60_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[],
    )
    bpe.train_from_iterator([" ".join(words)] * 3, trainer)
    model = json.loads(bpe.to_str())["model"]
    return alphabet, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
