"""The identity audit of one variant: a row per image, suspicious pairs, and a verdict.

Four checks: whether an image shows the person it is meant to show (swaps), whether two generated
identities are one (collisions), whether an image repeats a photograph (copies), and whether it
shows somebody of the reference set who never consented (strangers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.evidence.audit.copies import Patches, pixel_similarity
from pipeline_steps.evidence.audit.verdicts import VERDICTS, verdicts
from pipeline_steps.evidence.scores.resemblance import (
    Collision,
    Faces,
    Thresholds,
    closest_identities,
    most_similar,
    similarity_to_people,
    strangers,
    swapped_identities,
)

SAMPLE_COLUMNS = (
    "identity",
    "file",
    "shows",  # own: the person meant; other: another consented person; nobody: neither
    "own_similarity",
    "own_rank",
    "nearest_identity",
    "nearest_similarity",
    "photograph",
    "photograph_similarity",
    "pixel_photograph",
    "pixel_similarity",
    "copy",
    "wild_file",
    "wild_similarity",
    "stranger",
)
SUMMARY_COLUMNS = (
    "base_model",
    "method",
    "prompts",
    "recogniser",
    "n_images",
    "n_identities",
    "fmr",
    "image_threshold",
    "person_threshold",
    "search_threshold",
    "pixel_threshold",
    "own_share",
    "nobody_share",
    "swapped_images",
    "swapped_images_by_chance",
    "swapped_identities",
    "collisions",
    "collisions_of_photographs",
    "copies",
    "strangers",
    "strangers_by_chance",
    "stranger_identities",
    *VERDICTS.values(),
    "verdict",
    "sentence",
)


@dataclass(frozen=True)
class Evidence:
    """What the audit of one variant looks at.

    Attributes:
        images: the generated images.
        photographs: those of the consented people.
        wild: the reference set, or None.
        patches: pixels of the generated images by file, for those that could be read.
        photograph_patches: the same of the photographs.
        thresholds: from which things count as one person.
        pixel_threshold: from which an image is a copy; NaN: not judged.
        fmr, search_rate: the rates behind the thresholds.
    """

    images: Faces
    photographs: Faces
    wild: Faces | None
    patches: Mapping[str, Patches]
    photograph_patches: Mapping[str, Patches]
    thresholds: Thresholds
    pixel_threshold: float
    fmr: float
    search_rate: float


@dataclass(frozen=True)
class Audit:
    """Result of one variant's audit.

    Attributes:
        samples: a row per image, SAMPLE_COLUMNS.
        swapped: identity to the person whom its images show.
        collisions: pairs of identities, the most similar first.
        strangers: identity to the wild image that half its images match.
        summary: SUMMARY_COLUMNS without the names of variant and recogniser.
    """

    samples: list[dict[str, Any]]
    swapped: dict[str, str]
    collisions: list[Collision]
    strangers: dict[str, int]
    summary: dict[str, Any] = field(default_factory=dict)


def audit(evidence: Evidence) -> Audit:
    """Run all checks on one variant."""
    images, limits = evidence.images, evidence.thresholds
    similarity, people = similarity_to_people(images, evidence.photographs)
    samples = _sample_rows(evidence, similarity, people)
    found: dict[str, int] = {}
    if evidence.wild is not None:
        found = strangers(images, evidence.wild, limits.search)
    result = Audit(
        samples,
        swapped_identities(similarity, people, images.identities, limits.person),
        closest_identities(images, evidence.photographs),
        found,
    )
    result.summary.update(_summary(evidence, result, len(people)))
    return result


def _sample_rows(evidence: Evidence, similarity: NDArray[np.float64], people: list[str]) -> Any:
    images, photographs, limits = evidence.images, evidence.photographs, evidence.thresholds
    rank = (-similarity).argsort(axis=1).argsort(axis=1) + 1
    nearest = similarity.argmax(axis=1)
    closest, photograph = most_similar(images, photographs)
    wild_similarity = np.full(len(images), math.nan)
    wild_row = np.zeros(len(images), dtype=np.intp)
    if evidence.wild is not None:
        wild_similarity, wild_row = most_similar(images, evidence.wild)
    pixels = _pixel_matches(evidence, [people[index] for index in nearest])
    rows = []
    for index, (name, file) in enumerate(zip(images.identities, images.files, strict=True)):
        own = people.index(name) if name in people else None
        best = float(similarity[index, nearest[index]])
        shows = "nobody"
        if best >= limits.person:
            shows = "own" if nearest[index] == own else "other"
        pixel_file, pixel = pixels.get(file, ("", math.nan))
        rows.append(
            {
                "identity": str(name),
                "file": file,
                "shows": shows,
                "own_similarity": math.nan if own is None else float(similarity[index, own]),
                "own_rank": None if own is None else int(rank[index, own]),
                "nearest_identity": people[nearest[index]],
                "nearest_similarity": best,
                "photograph": photographs.files[photograph[index]],
                "photograph_similarity": float(closest[index]),
                "pixel_photograph": pixel_file,
                "pixel_similarity": pixel,
                "copy": closest[index] >= limits.image and pixel >= evidence.pixel_threshold,
                "wild_file": evidence.wild.files[wild_row[index]] if evidence.wild else "",
                "wild_similarity": float(wild_similarity[index]),
                "stranger": bool(wild_similarity[index] >= limits.search),
            }
        )
    return rows


def _pixel_matches(evidence: Evidence, nearest: list[str]) -> dict[str, tuple[str, float]]:
    """The closest photograph in pixels, among those of the person meant and of the nearest one.

    A copy of anybody else's photograph would make that person the nearest.
    """
    images, photographs = evidence.images, evidence.photographs
    found: dict[str, tuple[str, float]] = {}
    wanted: dict[str, list[str]] = {}
    for index, file in enumerate(images.files):
        if file in evidence.patches:
            for name in {str(images.identities[index]), nearest[index]}:
                wanted.setdefault(name, []).append(file)
    for name, files in wanted.items():
        theirs = [
            file
            for file, owner in zip(photographs.files, photographs.identities, strict=True)
            if owner == name and file in evidence.photograph_patches
        ]
        if not theirs:
            continue
        similarity = pixel_similarity(
            np.stack([evidence.patches[file] for file in files]),
            np.stack([evidence.photograph_patches[file] for file in theirs]),
        )
        for file, row in zip(files, similarity, strict=True):
            best = int(row.argmax())
            if file not in found or row[best] > found[file][1]:
                found[file] = (theirs[best], float(row[best]))
    return found


def _summary(evidence: Evidence, result: Audit, n_people: int) -> dict[str, Any]:
    n, limits = len(result.samples), evidence.thresholds
    shows = [row["shows"] for row in result.samples]
    colliding = [pair for pair in result.collisions if pair.similarity >= limits.image]
    alike = [pair for pair in colliding if pair.photographs >= limits.image]
    counts: dict[str, Any] = {
        "n_images": n,
        "n_identities": len(evidence.images.people),
        "fmr": evidence.fmr,
        "image_threshold": limits.image,
        "person_threshold": limits.person,
        "search_threshold": limits.search,
        "pixel_threshold": evidence.pixel_threshold,
        "own_share": shows.count("own") / n,
        "nobody_share": shows.count("nobody") / n,
        "swapped_images": shows.count("other"),
        "swapped_images_by_chance": evidence.fmr * n * (n_people - 1),
        "swapped_identities": len(result.swapped),
        "collisions": len(colliding),
        "collisions_of_photographs": len(alike),
        "copies": sum(row["copy"] for row in result.samples),
        "strangers": sum(row["stranger"] for row in result.samples),
        "strangers_by_chance": evidence.search_rate * n if evidence.wild else math.nan,
        "stranger_identities": len(result.strangers),
    }
    return counts | verdicts(counts)
