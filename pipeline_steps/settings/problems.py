"""Wrong settings in words: what stands there, what was expected, and what may have been meant."""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError

NAME_PATTERN = r"^[a-z0-9][a-z0-9_]*$"
# Words of our own for pydantic's kinds of errors; all others keep pydantic's.
EXPECTED = {
    "model_type": "expected keys with values",
    "dict_type": "expected keys with values",
    "tuple_type": "expected a list, as [a, b]",
    "list_type": "expected a list, as [a, b]",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
}
WORDS = {
    "Input should be": "expected",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid string": "text",
}
PATTERNS = {NAME_PATTERN: "expected small letters, digits and underscores alone, as my_study"}


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause per wrong key of a validation error of ``model``."""
    parts = []
    for item in error.errors():
        place = item["loc"]
        key = ".".join(map(str, place))
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {key!r}{meant(str(place[-1]), keys_at(model, place[:-1]))}")
            continue
        if item["type"] == "missing":
            parts.append(f"{key} is missing")
            continue
        expected = EXPECTED.get(item["type"]) or item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            expected = PATTERNS.get(item.get("ctx", {}).get("pattern", ""), expected)
        for theirs, ours in WORDS.items():
            expected = expected.replace(theirs, ours)
        found = item["input"]
        # A whole section is no help.
        tail = "" if isinstance(found, dict) else f" (found {reprlib.repr(found)})"
        parts.append(f"{key}: {expected}{tail}" if key else f"{expected}{tail}")
    return "; ".join(parts)


def meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of the known words is close, else all of them."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(words)}" if words else ""


def keys_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Keys that a model allows at a place; none where that is no model's."""
    for step in place:
        if not isinstance(step, str) or step not in model.model_fields:
            return []
        annotation = model.model_fields[step].annotation
        within = [part for part in (annotation, *typing.get_args(annotation)) if _is_model(part)]
        if not within:
            return []
        model = within[0]
    return list(model.model_fields)


def _is_model(part: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(part, type) and issubclass(part, BaseModel)
