"""From participants' folders and tables to the study's identities."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline_steps.files.errors import StepError

GENDERS = {"m": "M", "male": "M", "f": "F", "female": "F", "": ""}


def identity_name(folder: str) -> str | None:
    """`ID_<n>` for a participant's folder.

    A name with one number in it gives that number (7, 007, subject-7 -> ID_7); any other keeps its
    letters (anna -> ID_anna), so that a further participant never renames the others.

    Returns:
        None for a folder without a usable name.
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


def read_genders(path: Path) -> dict[str, str]:
    """Gender of each identity in a CSV with the columns participant or identity, and gender.

    Returns:
        identity to "M", "F" or "" (unknown).

    Raises:
        StepError: the file is missing or no such table, a gender is another word, or an identity
            stands there twice with different genders.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise StepError(f"gender table {path} does not exist: correct the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StepError(f"gender table {path} is no UTF-8 CSV file: {error}") from error
    columns = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    who = columns.get("identity") or columns.get("participant")
    what = columns.get("gender")
    if who is None or what is None:
        raise StepError(
            f"gender table {path} has the columns {sorted(columns)}, expected participant or "
            "identity, and gender, with at least one row"
        )
    genders: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        identity = identity_name((row[who] or "").strip())
        word = (row[what] or "").strip().lower()
        if identity is None or word not in GENDERS:
            raise StepError(
                f"gender table {path}, line {line}: {row[who]!r}, {row[what]!r}; expected a "
                "participant and M or F"
            )
        if genders.setdefault(identity, GENDERS[word]) != GENDERS[word]:
            raise StepError(f"gender table {path}, line {line}: {identity} has two genders")
    return genders
