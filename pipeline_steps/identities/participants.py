"""From participants' folders and tables to the study's identities, and whose photographs to use."""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.identities.photographs import (
    Listing,
    Photograph,
    list_photographs,
    unique_stems,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.settings.photographs import PrepareSettings

NO_CONSENT = "no consent"
# Words of a column, in small letters, and what they mean.
WORDS: dict[str, dict[str, Any]] = {
    "gender": {"m": "M", "male": "M", "f": "F", "female": "F", "": ""},
    "consent": dict.fromkeys(("true", "yes", "1"), True)
    | dict.fromkeys(("false", "no", "0"), False)
    | {"": None},
}


def identity_name(folder: str) -> str | None:
    """`ID_<n>` for a participant's folder; None for a folder without a usable name.

    A name with one number in it gives that number (7, 007, subject-7 -> ID_7); any other keeps its
    letters (anna -> ID_anna), so that a further participant never renames the others.
    """
    number = re.fullmatch(r"\D*?([0-9]+)\D*", folder)
    if number:
        return f"ID_{int(number[1])}"
    name = re.sub(r"[^\w-]+", "_", folder.removeprefix("ID_"), flags=re.ASCII).strip("_")
    return f"ID_{name}" if name else None


def identities_of_folders(folders: Iterable[str]) -> dict[str, str]:
    """Identity of each folder that has one.

    Raises:
        StepError: differently named folders would become the same identity.
    """
    owner: dict[str, str] = {}
    named: dict[str, str] = {}
    for folder in folders:
        identity = identity_name(folder)
        if identity is None:
            continue
        first = owner.setdefault(identity.casefold(), folder)
        if first != folder:
            raise StepError(
                f"the folders {first!r} and {folder!r} would both become {identity}: rename one"
            )
        named[folder] = identity
    return named


@dataclass(frozen=True)
class Participant:
    """What a table says of one participant; it may say nothing."""

    gender: str = ""  # or "M" or "F"
    consent: bool | None = None


def read_participants(path: Path) -> dict[str, Participant]:
    """Gender and consent of each identity in a CSV with the columns participant or identity, and
    gender, consent, or both.

    Returns:
        identity to what the table says; an identity that it lacks is not there.

    Raises:
        StepError: the file is missing or no such table, a gender or consent is another word, or an
            identity stands there twice with different words.
    """
    rows, columns = _table(path)
    who = columns.get("identity") or columns.get("participant")
    what = {name: columns[name] for name in WORDS if name in columns}
    if who is None or not what:
        raise StepError(
            f"participant table {path} has the columns {sorted(columns)}, expected participant or "
            "identity, and gender or consent, separated by commas, with at least one row"
        )
    found: dict[str, Participant] = {}
    for line, row in enumerate(rows, start=2):
        place = f"participant table {path}, line {line}"
        identity = identity_name((row[who] or "").strip())
        if identity is None:
            raise StepError(f"{place}: {row[who]!r} names nobody")
        said: dict[str, Any] = {}
        for name, column in what.items():
            word = (row[column] or "").strip().lower()
            if word not in WORDS[name]:
                expected = ", ".join(word for word in WORDS[name] if word)
                raise StepError(
                    f"{place}: {name} is {row[column]!r}, expected one of {expected}, or nothing"
                )
            said[name] = WORDS[name][word]
        participant = Participant(**said)
        if found.setdefault(identity, participant) != participant:
            raise StepError(
                f"{place}: {identity} stands there twice, with different {' or '.join(what)}"
            )
    return found


def read_withdrawn(path: Path) -> set[str]:
    """Identities of a CSV with the column identity or participant; empty where there is no file.

    Raises:
        StepError: the file is no such table, or a line names nobody.
    """
    if not path.is_file():
        return set()
    rows, columns = _table(path)
    who = columns.get("identity") or columns.get("participant")
    if rows and who is None:
        raise StepError(f"table {path} has the columns {sorted(columns)}, expected identity")
    found = {identity_name((row[who or ""] or "").strip()) for row in rows}
    if None in found:
        raise StepError(f"table {path} has a line without an identity: complete or delete it")
    return {identity for identity in found if identity is not None}


def refused_of(settings: PrepareSettings, participants: Mapping[str, Participant]) -> set[str]:
    """Who does not consent by the participants' table, or has withdrawn, see `read_withdrawn`."""
    refused = {name for name, entry in participants.items() if entry.consent is False}
    return refused | read_withdrawn(Path(settings.withdrawn_table))


def _table(path: Path) -> tuple[list[dict[str, str | None]], dict[str, str]]:
    """Rows of a CSV, and its columns by their names in small letters."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows: list[dict[str, str | None]] = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise StepError(f"participant table {path} does not exist: correct the path") from error
    except IsADirectoryError as error:
        raise StepError(f"participant table {path} is a folder: name the CSV file in it") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StepError(
            f"participant table {path} is no UTF-8 CSV file: save it as CSV with that encoding"
        ) from error
    return rows, {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}


@dataclass(frozen=True)
class Candidate:
    """A photograph, whose it is, what its name says, and why it is left out if it is."""

    photograph: Photograph
    identity: str | None
    stem: str
    camera: int | None
    position: int | None
    reason: str


@dataclass(frozen=True)
class Collection:
    """All that the sources hold: photographs source by source, identities of empty folders."""

    candidates: tuple[Candidate, ...]
    without_files: tuple[str, ...]
    listings: tuple[Listing, ...]


def collect(settings: PrepareSettings, participants: Mapping[str, Participant]) -> Collection:
    """List the photographs of all sources; those of people without consent are never read.

    Raises:
        StepError: a source is missing or broken, or two folders mean the same identity.
    """
    salvage = settings.on_broken_source == "salvage"
    listings = [list_photographs(Path(source), salvage=salvage) for source in settings.sources]
    for source, listing in zip(settings.sources, listings, strict=True):
        get_logger("prepare").info("%s: %d photographs", source, len(listing.photographs))
    photographs = [item for listing in listings for item in listing.photographs]
    empty = [folder for listing in listings for folder in listing.empty_folders]
    named = identities_of_folders([item.folder for item in photographs] + empty)
    stems = unique_stems([(named.get(item.folder, ""), item.name) for item in photographs])
    refused = refused_of(settings, participants)
    candidates = [
        _candidate(item, named.get(item.folder), stem, settings, refused)
        for item, stem in zip(photographs, stems, strict=True)
    ]
    with_files = {candidate.identity for candidate in candidates}
    without = {named[folder] for folder in empty if folder in named} - with_files
    return Collection(tuple(candidates), tuple(sorted(without)), tuple(listings))


def _candidate(
    photograph: Photograph,
    identity: str | None,
    stem: str,
    settings: PrepareSettings,
    refused: Container[str],
) -> Candidate:
    """What a photograph's name and place say about it; the first reason against it counts."""
    pattern, wanted = settings.file_pattern, settings.positions
    named = ".*" if pattern is None else pattern
    match = re.fullmatch(named, photograph.name, flags=re.IGNORECASE | re.DOTALL)
    found = match.groupdict() if match else {}
    numbers = {key: int(value) for key, value in found.items() if value is not None}
    position = numbers.get("position")
    reasons = {
        "not in a participant's folder": identity is None,
        NO_CONSENT: identity in refused,
        "odd name": match is None,
        "position excluded": None not in (wanted, position) and position not in (wanted or ()),
    }
    reason = next((why for why, holds in reasons.items() if holds), "")
    return Candidate(photograph, identity, stem, numbers.get("camera"), position, reason)
