"""Photographs that may go into a dataset: whose they are, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.identities.participants import identities_of_folders
from pipeline_steps.identities.photographs import (
    Listing,
    Photograph,
    list_photographs,
    unique_stems,
)
from pipeline_steps.runtime.logs import get_logger

NO_CONSENT = "no consent"


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
    """All that the sources hold.

    Attributes:
        candidates: the photographs, source by source.
        without_files: identities of folders without a single file.
        listings: the sources.
    """

    candidates: tuple[Candidate, ...]
    without_files: tuple[str, ...]
    listings: tuple[Listing, ...]


def collect(
    sources: Sequence[Path],
    file_pattern: str | None,
    positions: Sequence[int] | None,
    *,
    salvage: bool = False,
    refused: Container[str] = (),
) -> Collection:
    """List the photographs of all sources.

    Args:
        sources: archives and folders.
        file_pattern: regular expression of a whole file name, with the named groups camera and
            position where there are such numbers; None takes any image.
        positions: positions to keep; None keeps all.
        salvage: use the whole files of an archive that ends too early.
        refused: identities without consent; their photographs are named and never read.

    Raises:
        StepError: a source is missing or broken, or two folders mean the same identity.
    """
    log = get_logger("prepare")
    photographs: list[Photograph] = []
    empty: list[str] = []
    listings = []
    for source in sources:
        listing = list_photographs(source, salvage=salvage)
        listings.append(listing)
        photographs += listing.photographs
        empty += listing.empty_folders
        log.info("%s: %d photographs", source, len(listing.photographs))
    named = identities_of_folders([item.folder for item in photographs] + empty)
    stems = unique_stems([(named.get(item.folder, ""), item.name) for item in photographs])
    candidates = [
        candidate_of(item, named.get(item.folder), stem, file_pattern, positions, refused)
        for item, stem in zip(photographs, stems, strict=True)
    ]
    with_files = {candidate.identity for candidate in candidates}
    without = {named[folder] for folder in empty if folder in named} - with_files
    return Collection(tuple(candidates), tuple(sorted(without)), tuple(listings))


def candidate_of(
    photograph: Photograph,
    identity: str | None,
    stem: str,
    file_pattern: str | None,
    positions: Sequence[int] | None,
    refused: Container[str] = (),
) -> Candidate:
    """What a photograph's name and place say about it."""
    numbers: dict[str, int] = {}
    reason = ""
    if identity is None:
        reason = "not in a participant's folder"
    elif identity in refused:
        reason = NO_CONSENT
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
