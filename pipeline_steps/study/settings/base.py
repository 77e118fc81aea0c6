"""The base of every settings model, the weights registry's entry, and the frozen step settings."""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipeline_steps.io.weights import Weights, placed
from pipeline_steps.runtime.errors import StepError


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _from_home(path: str) -> str:
    if not path.strip():
        raise ValueError("expected a path")
    if re.search(r"[{}\0-\x1f\x7f]", path):
        raise ValueError(
            "expected a path without { and }, which the workflow takes for its wildcards, and "
            "without line breaks: rename the file or folder"
        )
    return f"./{path}" if path.startswith("-") else os.path.expanduser(path)


DataPath = Annotated[str, AfterValidator(_from_home)]
"""Path of something that a user puts in; ``~`` is the home folder, and none is taken for a flag."""

COMPUTING = frozenset(
    {"PIL", "cv2", "diffusers", "numpy", "onnx", "pandas", "scipy"}
    | {"tokenizers", "torch", "transformers"}
)
"""Modules of the libraries that numbers and images come from."""

S = TypeVar("S", bound=Section)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Frozen(Generic[S]):
    """All the configuration one step reads.

    Attributes:
        study: Name of the study.
        step: Name of the step.
        seed: The study seed, in [0, 2**63).
        settings: The step's own settings.
        weights: Role ("base_model", "recogniser", "extractor") to registry entry.
        variant: What this file is for, e.g. base_model, method, prompts, trained_on, repetition.
        code: Hash of the code that computes the step, see ``study.code``.
        libraries: Modules of ``COMPUTING`` that this code imports.
    """

    study: str
    step: str
    seed: int
    settings: S
    weights: dict[str, Weights] = field(default_factory=dict)
    variant: dict[str, str] = field(default_factory=dict)
    code: str = ""
    libraries: tuple[str, ...] = ()


def load_frozen(path: str | os.PathLike[str], settings_class: type[S]) -> Frozen[S]:
    """Read a frozen step configuration.

    Args:
        path: A JSON file with the keys study, step, seed, settings, weights, variant and code.
        settings_class: The step's settings model.

    Raises:
        StepError: the file is missing, is no such JSON, or has unknown or unfit settings.
    """
    try:
        raw: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StepError(f"configuration {path} is missing: pass the file under --config") from error
    except (OSError, ValueError) as error:
        raise StepError(
            f"configuration {path} is not JSON ({error}): run snakemake, which writes it again"
        ) from error
    expected = {"study", "step", "seed", "settings", "weights", "variant"}
    if not isinstance(raw, dict) or set(raw) - {"code", "libraries"} != expected:
        found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise StepError(f"configuration {path} has {found}, expected {sorted(expected)}")
    return Frozen(
        study=str(raw["study"]),
        step=str(raw["step"]),
        seed=int(raw["seed"]),
        settings=validated(settings_class, raw["settings"], f"{path}: settings"),
        weights={
            role: validated(Weights, placed(entry), f"{path}: weights.{role}")
            for role, entry in raw["weights"].items()
        },
        variant={str(key): str(value) for key, value in raw["variant"].items()},
        code=str(raw.get("code", "")),
        libraries=tuple(map(str, raw.get("libraries", ()))),
    )


def validated(model: type[M], value: Any, where: str) -> M:
    """``model`` made from plain data.

    Raises:
        StepError: naming each wrong key with what is wrong about it, and ``where`` it stands.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise StepError(f"{where}: {describe(error, model)}") from error


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


def choices(annotation: Any) -> tuple[Any, ...]:
    """The words of a setting that is one of a few."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return parts
    return tuple(choice for part in parts for choice in choices(part))


def _is_model(part: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(part, type) and issubclass(part, BaseModel)
