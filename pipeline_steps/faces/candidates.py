"""Photographs that may go into a dataset: whose they are, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.faces.participants import identities_of_folders
from pipeline_steps.faces.photographs import Photograph, list_photographs, unique_stems
from pipeline_steps.files.logs import get_logger


@dataclass(frozen=True)
class Candidate:
    """A photograph, whose it is, what its name says, and why it is left out if it is."""

    photograph: Photograph
    identity: str | None
    stem: str
    camera: int | None
    position: int | None
    reason: str


def collect(
    sources: Sequence[Path], file_pattern: str | None, positions: Sequence[int] | None
) -> tuple[list[Candidate], list[str]]:
    """All photographs of the sources, and the identities of folders without a single file.

    Args:
        sources: zip archives and folders.
        file_pattern: regular expression of a whole file name, with the named groups camera and
            position where there are such numbers; None takes any image.
        positions: positions to keep; None keeps all.

    Raises:
        StepError: a source is missing or broken, or two folders mean the same identity.
    """
    log = get_logger("prepare")
    photographs: list[Photograph] = []
    empty: list[str] = []
    for source in sources:
        listing = list_photographs(source)
        photographs += listing.photographs
        empty += listing.empty_folders
        log.info("%s: %d photographs", source, len(listing.photographs))
        if listing.ignored:
            log.info("%s: %d files ignored that are no images", source, listing.ignored)
    named = identities_of_folders([item.folder for item in photographs] + empty)
    stems = unique_stems([(named.get(item.folder, ""), item.name) for item in photographs])
    candidates = [
        candidate_of(item, named.get(item.folder), stem, file_pattern, positions)
        for item, stem in zip(photographs, stems, strict=True)
    ]
    with_files = {candidate.identity for candidate in candidates}
    without = {named[folder] for folder in empty if folder in named} - with_files
    return candidates, sorted(without)


def candidate_of(
    photograph: Photograph,
    identity: str | None,
    stem: str,
    file_pattern: str | None,
    positions: Sequence[int] | None,
) -> Candidate:
    """What a photograph's name and place say about it."""
    numbers: dict[str, int] = {}
    reason = ""
    if identity is None:
        reason = "not in a participant's folder"
    if file_pattern is not None:
        match = re.fullmatch(file_pattern, photograph.name, flags=re.IGNORECASE)
        if match is None:
            reason = reason or "odd name"
        else:
            found = match.groupdict()
            numbers = {key: int(value) for key, value in found.items() if value is not None}
    camera, position = numbers.get("camera"), numbers.get("position")
    if positions is not None and position is not None:
        reason = reason or ("" if position in positions else "position excluded")
    return Candidate(photograph, identity, stem, camera, position, reason)
