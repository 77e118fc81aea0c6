"""What of a study's results is one identity's, as the ledger says of each file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.study.artefacts import ARTEFACTS, People, entry_of

ANY_FIELD = r"\{\w+\}"


@dataclass(frozen=True)
class Item:
    """A file of a study's results.

    Attributes:
        path: relative to the results folder.
        people: whose it is; None for a file that the project does not make.
        owner: the identity that it is alone of, if it is anybody's.
        why: what it is, for a list.
    """

    path: str
    people: People | None
    owner: str | None
    why: str


def item_of(path: str) -> Item:
    """Sort one file, by its place.

    Args:
        path: relative to the results folder, with slashes.
    """
    entry = entry_of(path)
    if entry is None:
        return Item(path, None, None, "no file that the project makes")
    people = entry.people
    owner = entry.fields["identity"] if people is People.ONE else None
    what = entry.artefact.what if people is People.ALL else people.value
    return Item(path, people, owner, f"{owner} alone" if owner else what)


def inventory(results: Path) -> list[Item]:
    """All files below a results folder, in order of their paths."""
    return [item_of(path) for path in sorted(files_below(results))]


def owners_in(results: Path) -> set[str]:
    """Identities of whom anything of their own lies in a results folder; opens no file."""
    found = set()
    for artefact in ARTEFACTS.values():
        if artefact.people is not People.ONE:
            continue
        below, _, rest = artefact.path.partition("{identity}")
        name = f"*{rest.partition('/')[0]}"  # the folder or file that is called after somebody
        for pattern in globs_of(below + re.sub(ANY_FIELD, "*", name)):
            for path in results.glob(pattern):
                inside = path / "x" if path.is_dir() else path
                entry = entry_of(inside.relative_to(results).as_posix())
                if entry is not None and entry.people is People.ONE:
                    found.add(entry.fields["identity"])
    return found


def globs_of(template: str) -> list[str]:
    """Patterns of files whose path fits a template."""
    for field, shapes in {"{source}": ("*", "*/*/*"), "{variant}": ("*/*/*",)}.items():
        if field in template:
            return [re.sub(ANY_FIELD, "*", template.replace(field, shape)) for shape in shapes]
    return [re.sub(ANY_FIELD, "*", template)]


def files_below(folder: Path) -> Iterator[str]:
    """Files and links below a folder, relative to it, hidden ones included."""
    for path in folder.rglob("*"):
        if path.is_symlink() or path.is_file():
            yield path.relative_to(folder).as_posix()
