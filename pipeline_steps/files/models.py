"""Which weights a study needs, what of them is not there, and whose licences are not accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.weights import (
    NO_WEIGHTS,
    absent_files,
    expected_place,
    how_to_get,
)
from pipeline_steps.settings.base import Weights
from pipeline_steps.settings.freeze import extractors
from pipeline_steps.settings.registry import pick
from pipeline_steps.settings.study import Study

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
    named.append(pick(models, study.recogniser, "recogniser", "recogniser"))
    named.extend(pick(models, name, "score") for name in extractors(study))
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
