"""The weights registry: which weights a name stands for, from where, and under what licence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.weights import (
    NO_WEIGHTS,
    Weights,
    absent_files,
    expected_place,
    how_to_get,
)
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import meant, validated
from pipeline_steps.study.settings.study import Study, extractors


def read_models(path: str | os.PathLike[str]) -> dict[str, Weights]:
    """Read ``config/models.yaml``: a mapping of names to entries.

    Raises:
        StepError: the file is missing or no such mapping, or an entry has unknown or unfit keys.
    """
    raw = read_mapping(path, "weights registry")
    return {name: _entry(raw, name, path, ()) for name in raw}


def _entry(
    raw: Mapping[str, Any], name: str, path: str | os.PathLike[str], within: tuple[str, ...]
) -> Weights:
    """One entry, the names of its components replaced by their entries."""
    fields = {"name": name, **(raw[name] or {})}
    parts = fields.get("components")
    if isinstance(parts, dict):
        for part, other in parts.items():
            if other not in raw or other in (*within, name):
                raise StepError(
                    f"{path}: {name}: components.{part}: {other!r} is no other entry's name"
                )
        fields["components"] = {
            part: _entry(raw, other, path, (*within, name)) for part, other in parts.items()
        }
    return validated(Weights, fields, f"{path}: {name}")


def pick(models: Mapping[str, Weights], name: str, key: str, task: str | None = None) -> Weights:
    """The entry that a study's key names.

    Raises:
        StepError: there is no such entry, or it is for another task.
    """
    if name not in models:
        fit = sorted(other for other, entry in models.items() if task in (None, entry.task))
        raise StepError(f"{key}: config/models.yaml has no entry {name!r}{meant(name, fit)}")
    if task is not None and models[name].task != task:
        raise StepError(f"{key}: {name!r} is for {models[name].task}, not {task}")
    return models[name]


def guide_of(study: Study, models: Mapping[str, Weights]) -> Weights:
    """The recogniser inside the identity losses.

    Raises:
        StepError: as :func:`pick`, or the recogniser only judges.
    """
    guide = pick(models, study.recogniser, "recogniser", "recogniser")
    if not guide.architecture.startswith("iresnet"):
        raise StepError(
            f"recogniser: {guide.name!r} judges only, losses need an iresnet: name it under "
            "score.identity.recognisers instead"
        )
    return guide


EMBEDDED = "resources/demo_world/"  # weights that come with the code, under the code's licence


@dataclass(frozen=True)
class MissingWeights:
    """An entry of the weights registry that a study needs and that is not there in full.

    Attributes:
        name: The entry.
        task: What it is for.
        files: What is missing, as the registry calls it.
        place: File or folder where it is looked for.
        source: Where it comes from.
        size: Bytes to download, about; None where nobody says.
        licence: Its licence.
        commercial_use: Whether that licence allows commercial use.
        how: What to do, in one line.
    """

    name: str
    task: str
    files: tuple[str, ...]
    place: Path
    source: str
    size: int | None
    licence: str
    commercial_use: bool
    how: str


def needed_weights(study: Study, models: Mapping[str, Weights]) -> list[Weights]:
    """Every registry entry that a study uses, with the components of each, without repetition.

    Raises:
        StepError: the study names weights that the registry lacks or has for another task.
    """
    named = [pick(models, name, "base_models", "base_model") for name in study.base_models]
    named.append(guide_of(study, models))
    named.extend(pick(models, name, "score") for name in extractors(study))
    for method in study.methods:
        given = study.train_generator.resolved(method).weights
        if METHODS[method].family.trains != "weights":
            continue
        own = [given[name] for name in study.base_models if name in given]
        named.extend(pick(models, name, "train_generator.weights", "generator") for name in own)
    return once(entry for whole in named for entry in whole.with_components())


def once(entries: Iterable[Weights]) -> list[Weights]:
    """Entries by first appearance, each name once."""
    return list({entry.name: entry for entry in entries}.values())


def missing_weights(study: Study, models: Mapping[str, Weights]) -> list[MissingWeights]:
    """What a study needs and this machine lacks; an empty list where everything is there.

    Presence is looked at, not content: hashes are checked by the steps and by fetch_models.

    Raises:
        StepError: as :func:`needed_weights`.
    """
    found = ((entry, absent_files(entry)) for entry in needed_weights(study, models))
    return [
        MissingWeights(
            name=entry.name,
            task=entry.task,
            files=tuple(files),
            place=expected_place(entry),
            source=entry.source,
            size=entry.size,
            licence=entry.licence,
            commercial_use=entry.commercial_use,
            how=how_to_get(entry),
        )
        for entry, files in found
        if files
    ]


def unaccepted(study: Study, entries: Iterable[Weights]) -> list[Weights]:
    """Entries whose licence the study has not accepted, by the licence's or the entry's name.

    Weights that come with the code, and methods without weights, ask for nothing.
    """
    return [
        entry
        for entry in entries
        if entry.source != NO_WEIGHTS
        and not entry.source.startswith(EMBEDDED)
        and not {entry.name, entry.licence} & set(study.accept_licences)
    ]


def require_licences(study: Study, entries: Iterable[Weights]) -> None:
    """Stop where a needed licence has not been accepted.

    Raises:
        StepError: naming each licence with its entries and what to write.
    """
    by_licence: dict[str, list[str]] = {}
    for entry in unaccepted(study, entries):
        by_licence.setdefault(entry.licence, []).append(entry.name)
    if by_licence:
        listed = "; ".join(f"{name!r} ({', '.join(of)})" for name, of in by_licence.items())
        raise StepError(
            f"study {study.name}: licences not accepted: {listed}. Read them, then write "
            f"accept_licences: {list(by_licence)} into the study's configuration"
        )
