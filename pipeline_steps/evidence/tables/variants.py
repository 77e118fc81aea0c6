"""Variants of a study: their settings, their methods, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_steps.evidence.tables.names import Names, order_key, variant_key
from pipeline_steps.naming import UNTUNED
from pipeline_steps.study.sources import Source


def settings_of(sources: Iterable[Source]) -> list[tuple[str, str]]:
    """Base models and prompt sets in the paper's order."""
    found = {(source.base_model, source.prompts) for source in sources}
    return sorted(found, key=lambda pair: (order_key(pair[0]), order_key(pair[1])))


def methods_of(sources: Iterable[Source], base_model: str, prompts: str) -> list[Source]:
    """The variants of one setting, in the paper's order of methods."""
    found = [s for s in sources if (s.base_model, s.prompts) == (base_model, prompts)]
    return sorted(found, key=lambda s: variant_key(s.base_model, s.prompts, s.method))


def method_name(names: Names, method: str) -> str:
    """A method's name where the untuned model needs a word and tables have a dash."""
    return "untuned" if method == UNTUNED else names(method)


def variant_name(source: Source, names: Names) -> str:
    """`SD-2.1, Base, ID-Booth`."""
    parts = (names(source.base_model), names(source.prompts), method_name(names, source.method))
    return ", ".join(parts)
