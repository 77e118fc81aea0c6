"""Whose each photograph of the sources is, and which may be used: those of people who consent.

Consent fails closed. A refusal holds for every photograph below a folder that it could mean, under
whatever upper case or encoding of accents; one that means nobody, or may mean two, stops the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline_steps.identities.participants import (
    NO_CONSENT,
    Participant,
    Participants,
    fold,
    identities_of_folders,
    identity_name,
    refused_of,
    spellings,
)
from pipeline_steps.identities.photographs import (
    Listing,
    Photograph,
    Where,
    list_photographs,
    unique_stems,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.photographs import PrepareSettings

LEVEL = "say in prepare.participant_level how many folders deep a participant's folder lies"


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
        candidates: photographs, source by source.
        without_files: identities of folders without a photograph, and what is in these.
        listings: the sources.
        folders: name of each identity's folder, as it is written.
        participants: the user's table, by identities as they are spelled here.
    """

    candidates: tuple[Candidate, ...]
    without_files: dict[str, str]
    listings: tuple[Listing, ...]
    folders: dict[str, str]
    participants: Participants


def collect(settings: PrepareSettings, participants: Participants) -> Collection:
    """List the photographs of all sources; those of people without consent are never read.

    Raises:
        StepError: a source is missing or broken, two folders mean the same identity, or it is not
            clear whom a refusal means.
    """
    refused = refused_of(settings, participants)
    listings = list_sources(settings, refused)
    named = identities_of(settings, listings)
    without = refused_places(named, refused, settings.participant_level)
    photographs = [item for listing in listings for item in listing.photographs]
    stems = unique_stems([(named[item.where] or "", item.name) for item in photographs])
    candidates = [
        _candidate(item, named[item.where], stem, settings, without.get(item.where))
        for item, stem in zip(photographs, stems, strict=True)
    ]
    present = {one.identity for one in candidates}
    bare = {named[where]: why for listing in listings for where, why in listing.bare.items()}
    folders = {identity: where.folder for where, identity in named.items() if identity}
    spelled = {fold(identity): identity for identity in folders}
    return Collection(
        tuple(candidates),
        {name: bare[name] for name in sorted(filter(None, bare)) if name not in present},
        tuple(listings),
        folders,
        {spelled.get(fold(name), name): entry for name, entry in participants.items()},
    )


def list_sources(settings: PrepareSettings, refused: Participants) -> list[Listing]:
    """All sources; files whose names say nothing are opened where nobody refused could be meant."""
    words = {word for name, entry in refused.items() for word in _words(name, entry)}

    def may_open(photograph: Photograph) -> bool:
        where = photograph.where
        names = (*where.place, *where.beside, *where.linked)
        return not any(words & _meanings(name) for name in names)

    return [
        list_photographs(
            Path(source),
            salvage=settings.on_broken_source == "salvage",
            level=settings.participant_level,
            may_open=may_open,
        )
        for source in settings.sources
    ]


def identities_of(
    settings: PrepareSettings, listings: Sequence[Listing]
) -> dict[Where, str | None]:
    """Whose the photographs of each place are; None for nobody's.

    Raises:
        StepError: it is not clear which folders are people's, or two people would become one.
    """
    found: dict[Where, str | None] = {}
    for listing in listings:
        places = list(dict.fromkeys([*(one.where for one in listing.photographs), *listing.bare]))
        owners = [where.owner for where in places if where.depth]
        earlier = [where.owner for where, identity in found.items() if identity]
        names = identities_of_folders(dict.fromkeys([*earlier, *owners]))
        if settings.participant_level is None:
            _refuse_mixed(listing)
            _refuse_merged({owner: names[owner] for owner in owners if owner in names})
        found |= {where: names.get(where.owner) if where.depth else None for where in places}
    return found


def _refuse_merged(owners: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for owner, identity in owners.items():
        other = first.setdefault(identity, owner)
        if other != owner:
            raise StepError(
                f"the photographs in {other!r} and {owner!r} would become one person's, {identity}:"
                f" {LEVEL}, or rename one of the folders"
            )


def _refuse_mixed(listing: Listing) -> None:
    """Photographs beside folders of photographs are strays in a source's only folder alone."""
    safe = [one.where for one in listing.photographs if not one.unsafe and one.where.place]
    for stray in dict.fromkeys(where for where in safe if not where.depth):
        n = len(stray.place)
        below = {one.owner: one for one in safe if one.depth and one.place[:n] == stray.place}
        if len(below) > 1 and all(one.place[:n] == stray.place for one in safe):
            continue
        raise StepError(
            f"photographs lie in {stray.path!r} and in {next(iter(below))!r} below it, so either "
            f"may be a person's folder: {LEVEL}"
        )


def refused_places(
    named: Mapping[Where, str | None], refused: Participants, level: int | None
) -> dict[Where, str]:
    """Where photographs of people lie who do not consent, and the setting that says so.

    Raises:
        StepError: a refusal matches nobody, or may mean two folders.
    """
    found: dict[Where, str] = {}
    for identity, entry in refused.items():
        words, exact = _words(identity, entry), spellings(entry.name) | spellings(identity)
        own, linked, near, vague = [], [], [], []
        for where in named:
            above, below = where.place[: max(0, where.depth - 1)], where.place[where.depth :]
            around = {*where.beside, *(() if level else (*above, *below))}
            if where.depth and words & _meanings(where.folder):
                own.append(where)
            elif any(words & _meanings(name) for name in where.linked):
                linked.append(where)
            elif any(exact & spellings(name) for name in around):
                near.append(where)
            elif not level and any(words & _meanings(name) for name in around):
                vague.append(where)
        firm = any(exact & spellings(where.folder) for where in own)
        doubtful = [*near[: bool(own)], *([] if firm or near else vague)]
        if doubtful:
            paths = " and ".join(repr(one.path) for one in [*own[:1], *doubtful[:2]][:2])
            raise StepError(
                f"{entry.setting} refuses {entry.name!r}, by which it may mean {paths}: write the "
                f"whole name of the folder into that table, or {LEVEL}"
            )
        if not own and not near and not entry.absent:
            raise StepError(
                f"{entry.setting} refuses {entry.name!r}, but no folder of the sources is called "
                "so: correct the name, or write true into the column absent of that line if no "
                "photographs of this person are here"
            )
        found |= dict.fromkeys([*own, *linked, *near], entry.setting)
    return found


def _words(identity: str, entry: Participant) -> set[str]:
    """All that a table's line can mean, in the words of `_meanings`."""
    return {*_meanings(entry.name), *_meanings(identity)}


@cache
def _meanings(name: str) -> frozenset[str]:
    """All that a folder's name can mean: `7` also in `Set7`."""
    identity = identity_name(name)
    return spellings(name) | (spellings(identity) if identity else frozenset())


def _candidate(
    photograph: Photograph,
    identity: str | None,
    stem: str,
    settings: PrepareSettings,
    refused_by: str | None,
) -> Candidate:
    """What a photograph's name and place say about it; the first reason against it counts."""
    pattern, wanted = settings.file_pattern, settings.positions
    named = ".*" if pattern is None else pattern
    match = re.fullmatch(named, photograph.name, flags=re.IGNORECASE | re.DOTALL)
    found = match.groupdict() if match else {}
    numbers = {key: int(value) for key, value in found.items() if value is not None}
    position = numbers.get("position")
    reasons = {
        f"{NO_CONSENT} ({refused_by})": refused_by is not None,
        "unsafe path": photograph.unsafe,
        "not in a participant's folder (prepare.participant_level)": identity is None,
        "odd name (prepare.file_pattern)": match is None,
        "position excluded (prepare.positions)": None not in (wanted, position)
        and position not in (wanted or ()),
    }
    reason = next((why for why, holds in reasons.items() if holds), "")
    return Candidate(photograph, identity, stem, numbers.get("camera"), position, reason)
