"""The hashes that stand for one identity, and the search for them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.identities.consent.digests import (
    all_hashes,
    fingerprint,
    hex_strings_of,
    written_hashes,
)
from pipeline_steps.identities.consent.inventory import Item, files_below
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import BadImage
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import People
from pipeline_steps.study.settings.photographs import PrepareSettings

SNAKEMAKE = ("metadata", "incomplete", "log", "slurm_logs")
"""Folders of .snakemake in which jobs leave something."""


@dataclass(frozen=True)
class Hit:
    """A file in which something of an identity is still there."""

    path: str
    fingerprint: str


def hashes_of_identity(results: Path, items: Iterable[Item], identity: str) -> set[str]:
    """Hashes of an identity's own files, and those that its rows and records hold.

    A hash that also stands in somebody else's records, such as the base model's, is not its own.
    """
    own: set[str] = set()
    shared: set[str] = set()
    for item in items:
        path = results / item.path
        if item.owner == identity:
            own |= all_hashes(path)
        elif item.people in (People.ONE, People.NONE):
            shared |= written_hashes(path)
        elif item.people in (People.ALL, People.ROWS):
            mine, others = rows_of(path, identity)
            own |= mine
            shared |= others
    return own - shared


def rows_of(path: Path, identity: str) -> tuple[set[str], set[str]]:
    """Hashes in the records of a table that are about an identity, and in those about others."""
    try:
        if path.suffix == ".parquet":
            frame = read_manifest(path)
            if "identity" not in frame:
                return set(), set()
            mine = frame["identity"] == identity
            return _texts(frame[mine].to_dict("list")), _texts(frame[~mine].to_dict("list"))
        if path.suffix == ".safetensors" and "features" in path.parts:
            found = load_features(path)
            lists = [json.loads(found.metadata.get(key, "[]")) for key in ("images", "sources")]
            pairs = [pair for of in lists for pair in zip(found.files, of, strict=False)]
            return (
                {digest for file, digest in pairs if file.split("/")[0] == identity},
                {digest for file, digest in pairs if file.split("/")[0] != identity},
            )
        if path.suffix == ".json":
            return _json_parts(json.loads(path.read_text(encoding="utf-8")), identity)
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            named = [row for row in rows if row.get("identity") == identity]
            return _texts(named), _texts([row for row in rows if row.get("identity") != identity])
    except (StepError, ValueError, OSError):
        pass  # a broken table tells nothing; it goes as a whole
    return set(), set()


def photograph_hashes(settings: PrepareSettings, identity: str) -> tuple[set[str], list[str]]:
    """Hashes of an identity's photographs, and the sources that could not be read for them."""
    from pipeline_steps.identities.participants import identity_name
    from pipeline_steps.identities.photographs import list_photographs

    found: set[str] = set()
    unread: list[str] = []
    for source in settings.sources:
        try:
            for photograph in list_photographs(Path(source), salvage=True).photographs:
                if photograph.folder and identity_name(photograph.folder) == identity:
                    found.add(sha256_bytes(photograph.read()))
        except (StepError, BadImage, OSError):
            unread.append(source)
    return found, unread


def search(
    results: Path, fingerprints: Iterable[str], more: Sequence[Path] = (), root: Path = Path()
) -> tuple[list[Hit], int]:
    """Look for hashes in all files of a study's results and of the workflow's notes.

    Every file is hashed, every hash written in it is read, and so are members of archives, tables
    and images inside pages.

    Args:
        results: the results folder.
        fingerprints: of the hashes.
        more: further files to look into.
        root: the working folder.

    Returns:
        What was found, and how many files were looked into.
    """
    wanted = set(fingerprints)
    hits, count = [], 0
    for path in [*searched(results, root), *more]:
        count += 1
        for digest in sorted(all_hashes(path)):
            if fingerprint(digest) in wanted:
                hits.append(Hit(path.as_posix(), fingerprint(digest)))
    return hits, count


def searched(results: Path, root: Path = Path()) -> Iterator[Path]:
    """Files of the results folder and of the workflow's notes."""
    for path in sorted(files_below(results)):
        yield results / path
    yield from notes(root)


def notes(root: Path) -> Iterator[Path]:
    """Files that Snakemake keeps about jobs."""
    for name in SNAKEMAKE:
        folder = root / ".snakemake" / name
        for path in sorted(files_below(folder)) if folder.is_dir() else ():
            yield folder / path


def _texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {found for item in value.values() for found in _texts(item)}
    if isinstance(value, list):
        return {found for item in value for found in _texts(item)}
    return hex_strings_of(value) if isinstance(value, str) else set()


def _json_parts(value: Any, identity: str) -> tuple[set[str], set[str]]:
    """Hashes below the identity's key or in its records, and all others."""
    if isinstance(value, dict):
        if value.get("identity") == identity:
            return _texts(value), set()
        parts = [
            (_texts(item), set()) if key == identity else _json_parts(item, identity)
            for key, item in value.items()
        ]
    elif isinstance(value, list):
        parts = [_json_parts(item, identity) for item in value]
    else:
        return set(), _texts(value)
    return (
        {found for mine, _ in parts for found in mine},
        {found for _, others in parts for found in others},
    )
