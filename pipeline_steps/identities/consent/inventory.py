"""What of a study's results is one identity's, by the place where it lies.

A file is the identity's own, or another's own, or made from all identities together, or from none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

VARIANT = "[^/]+/[^/]+/[^/]+"
OWNERS = re.compile(
    r"loras/[^/]+/[^/]+/checkpoints/[^/]+/(?P<a>[^/]+)\.safetensors$"
    r"|dataset/embeddings/(?P<b>[^/]+)\.safetensors$"
    rf"|(?:dataset/images|aligned/real|loras/[^/]+/[^/]+|(?:samples|aligned)/{VARIANT})/"
    r"(?P<c>[^/]+)/"
)
"""Where files of one identity lie: its name is a folder or a file there."""

SHELVES = frozenset({"cohorts", "checkpoints"})  # folders among identities' folders

INDEPENDENT = re.compile(
    r"(?:config|prior|benchmarks|aligned/wild|features/wild)/"
    r"|logs/(?:freeze/|prior/|align/wild|features/wild/|render_demo_world)"
)
"""What no identity had a part in. Benchmarks are times and memory of jobs."""

ROW_STORES = re.compile(rf"features/(?:real|{VARIANT})/\.[^/]+\.safetensors$")
"""Features that were extracted before, kept for the next run: a row per image."""

AGGREGATES: dict[str, str] = {
    r"dataset/[^/]+$": "lists all identities' photographs",
    r"dataset/embeddings/index\.json$": "lists all identities' embeddings",
    r"loras/[^/]+/[^/]+/cohorts/": "lists a cohort's weights",
    rf"samples/{VARIANT}/(?:cohorts/|manifest\.parquet$)": "lists all identities' samples",
    rf"aligned/(?:real|{VARIANT})/manifest\.parquet$": "lists all identities' aligned faces",
    rf"features/(?:real|{VARIANT})/": "a row for every face",
    r"scores/": "computed from all identities",
    r"audit/": "computed from all identities, and shows their faces",
    r"recognition/": "a recogniser trained on all identities, or its results",
    r"tables/": "computed from all identities",
    r"figures/": "shows identities",
    r"report\.html$": "shows identities",
    r"provenance\.json$": "written anew with the rest",
    r"export/": "a dataset of all identities",
    r"logs/": "log of a step that saw all identities",
}
"""What is made from all identities together: where, and what it is. Made again without one."""


class Kind(Enum):
    """How a file depends on identities."""

    OWN = "own"
    OTHERS = "others"
    INDEPENDENT = "independent"
    ROWS = "rows"
    AGGREGATE = "aggregate"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Item:
    """A file of a study's results.

    Attributes:
        path: relative to the results folder.
        kind: how it depends on the identity asked for.
        why: what it is, for a list.
    """

    path: str
    kind: Kind
    why: str


def owner_of(path: str) -> str | None:
    """The identity whose own file this is, by its place; None for a file of none or of several.

    Half-written files (``.<name>.<random>``) belong to whom their finished ones would.

    Args:
        path: relative to the results folder, with slashes.
    """
    if INDEPENDENT.match(path):
        return None
    match = OWNERS.match(path)
    name = next(filter(None, match.groups()), None) if match else None
    if name is None or name in SHELVES:
        return None
    return name.lstrip(".").split(".")[0]


def item_of(path: str, identity: str) -> Item:
    """Sort one file, by its place."""
    owner = owner_of(path)
    if owner is not None:
        kind = Kind.OWN if owner == identity else Kind.OTHERS
        return Item(path, kind, f"{owner} alone")
    if INDEPENDENT.match(path):
        return Item(path, Kind.INDEPENDENT, "no identity had a part in it")
    if ROW_STORES.match(path):
        return Item(path, Kind.ROWS, "a row for every face; the identity's rows go")
    for pattern, why in AGGREGATES.items():
        if re.match(pattern, path):
            return Item(path, Kind.AGGREGATE, why)
    return Item(path, Kind.UNKNOWN, "no file that the project makes")


def inventory(results: Path, identity: str) -> list[Item]:
    """All files below a results folder, in order of their paths."""
    return [item_of(path, identity) for path in sorted(files_below(results))]


def files_below(folder: Path) -> Iterator[str]:
    """Files and links below a folder, relative to it, hidden ones included."""
    for path in folder.rglob("*"):
        if path.is_symlink() or path.is_file():
            yield path.relative_to(folder).as_posix()


def owners_in(results: Path) -> set[str]:
    """Identities of whom anything of their own lies in a results folder; opens no file."""
    places = ["dataset/images/*/", "dataset/embeddings/*.safetensors", "aligned/real/*/"]
    places += ["loras/*/*/*/", "loras/*/*/checkpoints/*/*.safetensors"]
    places += ["samples/*/*/*/*/", "aligned/*/*/*/*/"]
    found = set()
    for place in places:
        for path in results.glob(place):
            inside = path / "x" if path.is_dir() else path
            owner = owner_of(inside.relative_to(results).as_posix())
            if owner is not None:
                found.add(owner)
    return found
