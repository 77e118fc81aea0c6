"""The identity audit of one variant: a row per image, counts, and a verdict.

Four checks: whether an image shows the person it is meant to show (swaps), whether two generated
identities are one (collisions), whether an image repeats a photograph (copies), and whether it
shows somebody of the reference set who never consented (strangers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.evidence.audit.copies import Patches, pixel_similarity
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
from pipeline_steps.naming import VARIANT

Verdict = Literal["pass", "look", "fail"]
SEVERITY: tuple[Verdict, ...] = ("pass", "look", "fail")
CHECKS = ("swaps", "collisions", "copies", "strangers")
VERDICTS = {check: f"{check}_verdict" for check in CHECKS}  # check -> column of its verdict
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
    *VARIANT,
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
        collisions: pairs of identities, the most similar first.
        summary: SUMMARY_COLUMNS without the names of variant and recogniser.
    """

    samples: list[dict[str, Any]]
    collisions: list[Collision]
    summary: dict[str, Any]


def audit(evidence: Evidence) -> Audit:
    """Run all checks on one variant."""
    images, limits, wild = evidence.images, evidence.thresholds, evidence.wild
    similarity, people = similarity_to_people(images, evidence.photographs)
    samples = _sample_rows(evidence, similarity, people)
    collisions = closest_identities(images, evidence.photographs)
    colliding = [pair for pair in collisions if pair.similarity >= limits.image]
    swapped = swapped_identities(similarity, people, images.identities, limits.person)
    n, shows = len(samples), [row["shows"] for row in samples]
    counts: dict[str, Any] = {
        "n_images": n,
        "n_identities": len(images.people),
        "fmr": evidence.fmr,
        "image_threshold": limits.image,
        "person_threshold": limits.person,
        "search_threshold": limits.search,
        "pixel_threshold": evidence.pixel_threshold,
        "own_share": shows.count("own") / n,
        "nobody_share": shows.count("nobody") / n,
        "swapped_images": shows.count("other"),
        "swapped_images_by_chance": evidence.fmr * n * (len(people) - 1),
        "swapped_identities": len(swapped),
        "collisions": len(colliding),
        "collisions_of_photographs": sum(pair.photographs >= limits.image for pair in colliding),
        "copies": sum(row["copy"] for row in samples),
        "strangers": sum(row["stranger"] for row in samples),
        "strangers_by_chance": math.nan if wild is None else evidence.search_rate * n,
        "stranger_identities": 0 if wild is None else len(strangers(images, wild, limits.search)),
    }
    return Audit(samples, collisions, counts | verdicts(counts))


def _sample_rows(
    evidence: Evidence, similarity: NDArray[np.float64], people: Sequence[str]
) -> list[dict[str, Any]]:
    images, photographs, limits = evidence.images, evidence.photographs, evidence.thresholds
    rank = (-similarity).argsort(axis=1).argsort(axis=1) + 1
    nearest = similarity.argmax(axis=1)
    closest, photograph = most_similar(images, photographs)
    wild_similarity, wild_files = np.full(len(images), math.nan), [""] * len(images)
    if evidence.wild is not None:
        wild_similarity, found = most_similar(images, evidence.wild)
        wild_files = [evidence.wild.files[row] for row in found]
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
                "wild_file": wild_files[index],
                "wild_similarity": float(wild_similarity[index]),
                "stranger": bool(wild_similarity[index] >= limits.search),
            }
        )
    return rows


def _pixel_matches(evidence: Evidence, nearest: Sequence[str]) -> dict[str, tuple[str, float]]:
    """The closest photograph in pixels, among those of the person meant and of the nearest one.

    A copy of anybody else's photograph would make that person the nearest.
    """
    photographs, known = evidence.photographs, evidence.photograph_patches
    wanted: dict[str, list[str]] = {}
    for file, meant, closest in zip(
        evidence.images.files, evidence.images.identities, nearest, strict=True
    ):
        if file in evidence.patches:
            for name in {str(meant), closest}:
                wanted.setdefault(name, []).append(file)
    found: dict[str, tuple[str, float]] = {}
    for name, files in wanted.items():
        owned = zip(photographs.files, photographs.identities, strict=True)
        theirs = [file for file, owner in owned if owner == name and file in known]
        if not theirs:
            continue
        similarity = pixel_similarity(
            np.stack([evidence.patches[file] for file in files]),
            np.stack([known[file] for file in theirs]),
        )
        for file, row in zip(files, similarity, strict=True):
            best = int(row.argmax())
            if file not in found or row[best] > found[file][1]:
                found[file] = (theirs[best], float(row[best]))
    return found


def verdicts(counts: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict per check and over all, and one sentence.

    fail: an identity shows another person on the whole, two identities are one that their
    photographs tell apart, or an image is a near copy. look: single images are suspicious, or the
    check could not be made. For strangers as many images as chance explains pass.

    Args:
        counts: the numbers of SUMMARY_COLUMNS.
    """
    judged = not math.isnan(counts["pixel_threshold"])
    found: dict[str, Verdict] = {
        "swaps": _grade(counts["swapped_identities"], counts["swapped_images"]),
        "collisions": _grade(
            counts["collisions"] - counts["collisions_of_photographs"], counts["collisions"]
        ),
        "copies": _grade(counts["copies"], not judged),
        "strangers": "look",
    }
    if not math.isnan(counts["strangers_by_chance"]):
        most = _most_by_chance(counts["n_images"], counts["strangers_by_chance"])
        found["strangers"] = _grade(counts["stranger_identities"], counts["strangers"] > most)
    overall = max(found.values(), key=SEVERITY.index)
    columns = {VERDICTS[check]: verdict for check, verdict in found.items()}
    return {**columns, "verdict": overall, "sentence": _sentence(overall, counts)}


def _grade(failures: int, doubts: int | bool) -> Verdict:
    return "fail" if failures else "look" if doubts else "pass"


def _most_by_chance(n: int, expected: float, confidence: float = 0.99) -> int:
    """The count that independent images with this expectation hardly ever exceed."""
    from scipy.stats import binom

    return int(binom.ppf(confidence, n, min(1.0, expected / n)))


def _sentence(overall: Verdict, counts: Mapping[str, Any]) -> str:
    """The verdict and what speaks for it; what was not found is not listed."""

    def several(key: str, one: str, many: str) -> str:
        return f"{counts[key]} {one if counts[key] == 1 else many}"

    chance = counts["swapped_images_by_chance"]
    found = {
        "swapped_identities": several("swapped_identities", "identity shows", "identities show")
        + " another consented person on the whole",
        "swapped_images": several("swapped_images", "image shows", "images show")
        + f" another consented person (by chance {chance:.1f} at most)",
        "collisions": several("collisions", "pair of identities is", "pairs of identities are")
        + " not told apart",
        "copies": several("copies", "image is a near copy", "images are near copies")
        + " of a photograph",
        "stranger_identities": several("stranger_identities", "identity shows", "identities show")
        + " somebody of the in-the-wild set on the whole",
        "strangers": several("strangers", "image resembles", "images resemble")
        + " somebody of the in-the-wild set"
        + f" ({counts['strangers_by_chance']:.1f} expected by chance)",
    }
    parts = [text for key, text in found.items() if counts[key]]
    if math.isnan(counts["pixel_threshold"]):
        parts.append("copies were not looked for: nobody has two photographs")
    if math.isnan(counts["strangers_by_chance"]):
        parts.append("there is no reference set to look for strangers in")
    return f"{overall}: {'; '.join(parts) or 'nothing suspicious'}."
