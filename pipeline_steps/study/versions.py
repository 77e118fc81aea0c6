"""Versions of the libraries that compute: what an artefact was made with, and what mixes two.

A note, ``<step>: <library> <version>``, is put down where an item is finished and goes with all
that is made from it: in manifests' schemas, headers of tensors, training.json, and records. No key
knows of it, so an upgrade makes nothing again by itself.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline_steps.io.manifests import noted_versions
from pipeline_steps.io.tensors import header_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.settings.base import Frozen

DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python"}  # where modules have other names
PYTHON = "python"  # noted; which one computes makes no difference


def made_with(frozen: Frozen[Any]) -> list[str]:
    """Notes on the libraries that a step's code imports, and on Python."""
    found = {name: _version(DISTRIBUTIONS.get(name, name)) for name in frozen.libraries}
    if found:
        found[PYTHON] = ".".join(platform.python_version_tuple()[:2])
    return [f"{frozen.step}: {name} {found[name]}" for name in sorted(found)]


_version = cache(version)


def versions_behind(*paths: Path) -> list[str]:
    """All notes of some files: their makers', and those of what they were made from."""
    return sorted({note for path in paths for note in _readable(path)})


def of_step(step: str, notes: Iterable[str]) -> list[str]:
    """``<library> <version>`` of one step's notes."""
    return [note.removeprefix(f"{step}: ") for note in notes if note.startswith(f"{step}: ")]


def _readable(path: Path) -> list[str]:
    """A file's notes; none of a broken one, about which whoever needs it complains."""
    try:
        return list(_notes(path))
    except (OSError, ValueError, SafetensorError):
        return []


def _notes(path: Path) -> Iterable[str]:
    if path.suffix == ".parquet":
        return noted_versions(path)
    if path.suffix == ".safetensors":
        return list(json.loads(header_of(path).get("versions", "[]")))
    if path.suffix == ".json":
        return _within(json.loads(path.read_text(encoding="utf-8")))
    places = (record_place(path), record_place(path.parent))
    return [note for place in places if place.is_file() for note in _notes(place)]


def _within(content: Any) -> Iterable[str]:
    """Notes that stand anywhere in a JSON object, under ``versions``."""
    if isinstance(content, dict):
        if isinstance(noted := content.get("versions"), list):
            yield from noted
        for value in content.values():
            yield from _within(value)


def mixtures(behind: Mapping[Path, Iterable[str]], *, by_step: bool = True) -> list[str]:
    """Libraries of which some files hold two versions.

    Args:
        behind: File to its notes.
        by_step: Whether only two versions in one and the same step count.

    Returns:
        For each a clause that tells the library, the versions, the steps, and a file of each.
    """
    found: dict[str, dict[str, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path, notes in behind.items():
        for step, library, number in (note.replace(":", "").split() for note in notes):
            if library != PYTHON:
                place = f"{library} in {step}" if by_step else library
                found[place][number].setdefault(step, path)
    return [
        f"{place} "
        + " and ".join(
            f"{number} ({', '.join(sorted(steps))}; behind {next(iter(steps.values()))})"
            for number, steps in sorted(numbers.items())
        )
        for place, numbers in sorted(found.items())
        if len(numbers) > 1
    ]


def told(behind: Mapping[Path, Iterable[str]]) -> str:
    """One sentence where the files of a study hold two versions of a library; else empty."""
    found = mixtures(behind, by_step=False)
    if not found:
        return ""
    return f"Made with more than one version of a computing library: {'; '.join(found)}."


def refuse_mixed_versions(paths: Iterable[Path]) -> None:
    """Refuse files that one step made with two versions of a library.

    Raises:
        StepError: naming library, versions and files.
    """
    found = mixtures({path: versions_behind(path) for path in paths})
    if found:
        raise StepError(
            f"what goes into the tables was made with two versions of {'; and of '.join(found)}: "
            "delete what the older one made and run again, or set tables.allow_mixed_versions: true"
        )
