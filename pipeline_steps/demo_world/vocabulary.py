"""The embedded text encoder's words: a byte-level BPE in CLIP's format, learned from the prompts' own words.

Every word that a prompt set uses, and every name, is one token; anything else falls apart into pieces, as with CLIP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.demo_world.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.seeds import numpy_generator

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = 32
NEGATIVE_PROMPT = "cartoon, cgi, render, illustration, painting, drawing, black and white, bad body proportions, landscape"
PLACEHOLDER = "sks"
_WORDS = (
    "photo of a person man woman male female close up portrait side face expression busy environment background "
    "in the with , - . sks"
)
_START, _END = "<|startoftext|>", "<|endoftext|>"


def names(count: int, seed: int) -> list[str]:
    """`count` distinct made-up names of two or three syllables, the same for a seed."""
    rng = numpy_generator(seed, "names")
    consonants, vowels = "bdfgjklmnprstvz", "aeiou"
    taken: dict[str, None] = {}
    while len(taken) < count:
        syllables = 2 + int(rng.integers(2))
        word = "".join(
            rng.choice(list(consonants)) + rng.choice(list(vowels)) for _ in range(syllables)
        )
        if word not in (PLACEHOLDER,):
            taken.setdefault(word)
    return list(taken)


def build_tokenizer(folder: Path, name_words: list[str]) -> CLIPTokenizer:
    """Learn the BPE merges, write vocab.json, merges.txt and the tokenizer's files to `folder`, and open them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_END)
    )
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words = [*_WORDS.split(), *" ".join(EXPRESSIONS).split(), *" ".join(PLACES).split()]
    words += [*NEGATIVE_PROMPT.replace(",", " ").split(), *name_words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=60_000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=[],
    )  # fmt: skip
    bpe.train_from_iterator([" ".join(words)] * 3, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges)]
    vocabulary = {
        token: index for index, token in enumerate(dict.fromkeys([*tokens, _START, _END]))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder))
    return tokenizer
