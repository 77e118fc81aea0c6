"""Participants' folders and tables: identities, their genders, and who does not consent."""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.photographs import PrepareSettings

Row = dict[str, str | None]
NO_CONSENT = "no consent"
YES_OR_NO = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)
# Words of a column, in small letters, and what they mean.
WORDS: dict[str, dict[str, Any]] = {
    "gender": {"m": "M", "male": "M", "f": "F", "female": "F", "": ""},
    "consent": YES_OR_NO | {"": None},
    "absent": YES_OR_NO | {"": False},
}
LONGEST_NAME = 60  # characters, of what is kept of a folder's name
_NUMBERED = re.compile(r"[^0-9]*([0-9]+)[^0-9]*", re.DOTALL)
_PREFIX = re.compile(r"^ID_", re.IGNORECASE)


def fold(name: str) -> str:
    """A name as names are compared: composed (NFC), and upper case as lower case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def identity_name(folder: str) -> str | None:
    """`ID_<n>` for a participant's folder; None for a folder without a name.

    A name with one number in it gives that number (7, 007, subject-7 -> ID_7); any other keeps its
    letters (anna -> ID_anna), so that a further participant never renames the others. Names that
    ASCII cannot tell apart get eight letters that do (Zoë -> ID_Zoe_jkdoeikf); an identity's own
    name gives itself.
    """
    number = _NUMBERED.fullmatch(folder)
    if number and len(number[1]) < LONGEST_NAME:
        return f"ID_{int(number[1])}"
    plain = _PREFIX.sub("", folder)
    if plain in ("", ".", ".."):
        return None
    apart = unicodedata.normalize("NFD", plain)
    letters = "".join(letter for letter in apart if not unicodedata.combining(letter))
    name = re.sub(r"[^\w-]+", "_", letters, flags=re.ASCII).strip("_")
    if plain.isascii() and 0 < len(name) <= LONGEST_NAME:
        return f"ID_{name}"
    name = name[: LONGEST_NAME - 9]  # with what tells it apart no longer than such a name
    if _NUMBERED.fullmatch(name):  # by which the identity's own name would be another one's
        name = re.sub(r"[0-9]+", "", name)
    digest = hashlib.sha256(fold(plain).encode()).digest()[:4]
    told = "".join(chr(ord("a") + half) for byte in digest for half in divmod(byte, 16))
    return f"ID_{name}_{told}" if name else f"ID_{told}"


@cache
def spellings(name: str) -> frozenset[str]:
    """Ways to write a name that mean nobody else: `7` and `ID_007`, but not `Set7`."""
    plain = fold(_PREFIX.sub("", name.strip()))
    if plain.isascii() and plain.isdecimal():
        return frozenset({plain.lstrip("0") or "0"})
    identity = None if _NUMBERED.fullmatch(plain) else identity_name(plain)
    return frozenset({plain, fold(identity[3:])} if identity else {plain})


def identities_of_folders(paths: Iterable[str]) -> dict[str, str]:
    """Identity of each folder that has one, by its path.

    Raises:
        StepError: differently named folders would become the same identity, or differ in upper and
            lower case alone.
    """
    owner: dict[str, str] = {}
    named: dict[str, str] = {}
    for path in paths:
        name = unicodedata.normalize("NFC", PurePosixPath(path).name)
        identity = identity_name(name)
        if identity is None:
            continue
        for same in {fold(identity), fold(name)}:
            first = owner.setdefault(same, path)
            if unicodedata.normalize("NFC", PurePosixPath(first).name) != name:
                raise StepError(
                    f"the folders {first!r} and {path!r} would both become {identity}: rename one"
                )
        named[path] = identity
    return named


@dataclass(frozen=True)
class Participant:
    """What a table says of one participant; it may say nothing.

    Attributes:
        gender: "M", "F" or empty.
        consent: None where nothing is said.
        absent: whether no photographs of this person need be there.
        name: as the table writes it.
        setting: that names the table.
    """

    gender: str = ""
    consent: bool | None = None
    absent: bool = False
    name: str = field(default="", compare=False)
    setting: str = field(default="prepare.gender_table", compare=False)


Participants = dict[str, Participant]


def read_participants(path: Path) -> Participants:
    """Gender and consent of each identity in a CSV with the columns participant or identity, and
    gender, consent, or both.

    Returns:
        identity to what the table says; an identity that it lacks is not there.

    Raises:
        StepError: the file is missing or no such table, a gender or consent is another word, or an
            identity stands there twice with different words.
    """
    rows, columns = _table(path)
    who = _who(path, columns)
    if who is None or not columns.keys() & {"gender", "consent"}:
        raise StepError(
            f"participant table {path} has the columns {sorted(columns)}, expected participant or "
            "identity, and gender or consent, separated by commas, with at least one row"
        )
    return _participants(path, rows, columns, who)


def read_columns(
    path: Path, names: Sequence[str], identities: Sequence[str]
) -> dict[str, dict[str, str]]:
    """What further columns of a participants' table say of identities, "" where nothing.

    Raises:
        StepError: the table lacks a column, or says two things of one person.
    """
    rows, columns = _table(path)
    who = _who(path, columns)
    absent = [name for name in names if name.lower() not in columns]
    if absent or who is None:
        raise StepError(
            f"participant table {path} lacks the column {' and '.join(absent) or 'participant'}, "
            f"it has {sorted(columns)}"
        )
    spelled = {fold(identity): identity for identity in identities}
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for line, row in enumerate(rows, start=2):
        named = identity_name(unicodedata.normalize("NFC", (row[who] or "").strip()))
        identity = spelled.get(fold(named or ""))
        for name in names if identity else ():
            said = (row[columns[name.lower()]] or "").strip()
            if found[name].setdefault(str(identity), said) != said:
                raise StepError(
                    f"participant table {path}, line {line}: {identity} stands there twice, with "
                    f"different {name}"
                )
    return found


def read_withdrawn(path: Path) -> Participants:
    """People of a CSV with the column identity or participant; nobody where there is no file.

    Raises:
        StepError: the file is no such table, or a line names nobody.
    """
    if not path.is_file():
        return {}
    rows, columns = _table(path)
    who = _who(path, columns)
    if rows and who is None:
        raise StepError(f"table {path} has the columns {sorted(columns)}, expected identity")
    about = {name: columns[name] for name in ("absent",) if name in columns}
    found = _participants(path, rows, about, who or "")
    return {
        identity: replace(entry, consent=False, setting="prepare.withdrawn")
        for identity, entry in found.items()
    }


def refused_of(settings: PrepareSettings, participants: Mapping[str, Participant]) -> Participants:
    """Who does not consent by the participants' table, or has withdrawn, see `read_withdrawn`."""
    refused = {name: entry for name, entry in participants.items() if entry.consent is False}
    return read_withdrawn(Path(settings.withdrawn_table)) | refused


def _who(path: Path, columns: Mapping[str, str]) -> str | None:
    """The column that names people.

    Raises:
        StepError: there are two, or a column that may be about consent and is not called so.
    """
    odd = [name for name in columns if "consent" in name and name != "consent"]
    if {"identity", "participant"} <= columns.keys() or odd:
        raise StepError(
            f"participant table {path} has the columns {sorted(columns)}, of which one alone may "
            f"name people, and consent is to stand in a column of that name: rename "
            f"{' and '.join(odd) or 'identity or participant'}"
        )
    return columns.get("identity") or columns.get("participant")


def _participants(
    path: Path, rows: Sequence[Row], columns: Mapping[str, str], who: str
) -> Participants:
    """What each line says; names are one person's whether or not upper case and accents' encoding
    agree."""
    found: Participants = {}
    spelled: dict[str, str] = {}
    what = {name: columns[name] for name in WORDS if name in columns}
    for line, row in enumerate(rows, start=2):
        place = f"participant table {path}, line {line}"
        name = (row[who] or "").strip()
        identity = identity_name(unicodedata.normalize("NFC", name))
        if identity is None:
            raise StepError(f"{place}: {row[who]!r} names nobody")
        said: dict[str, Any] = {}
        for about, column in what.items():
            word = (row[column] or "").strip().lower()
            if word not in WORDS[about]:
                expected = ", ".join(word for word in WORDS[about] if word)
                raise StepError(
                    f"{place}: {about} is {row[column]!r}, expected one of {expected}, or nothing"
                )
            said[about] = WORDS[about][word]
        participant = Participant(**said, name=name)
        identity = spelled.setdefault(fold(identity), identity)
        if found.setdefault(identity, participant) != participant:
            raise StepError(
                f"{place}: {identity} stands there twice, with different {' or '.join(what)}"
            )
    return found


def _table(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Rows of a CSV, and its columns by their names in small letters."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows: list[Row] = list(reader)
            names = [name for name in reader.fieldnames or () if name]
    except FileNotFoundError as error:
        raise StepError(f"participant table {path} does not exist: correct the path") from error
    except IsADirectoryError as error:
        raise StepError(f"participant table {path} is a folder: name the CSV file in it") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StepError(
            f"participant table {path} is no UTF-8 CSV file: save it as CSV with that encoding"
        ) from error
    columns = {name.strip().lower(): name for name in names}
    long = next((line for line, row in enumerate(rows, start=2) if None in row), None)
    if len(columns) < len(names) or long:
        odd = f"line {long} has more cells than the header" if long else "two columns of one name"
        raise StepError(f"participant table {path}: {odd}; put quotes about cells with commas")
    return rows, columns if rows else {}
