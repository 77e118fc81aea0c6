"""The identity audit of one variant: a row per image, counts, and a verdict.

Four checks: whether an image shows the person it is meant to show (swaps), whether two generated
identities are one (collisions), whether an image repeats a photograph (copies), and whether it
shows somebody of the reference set who never consented (strangers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline_steps.evidence.audit.copies import Patches, pixel_similarity
from pipeline_steps.evidence.audit.resemblance import (
    Collision,
    Faces,
    Thresholds,
    closest_identities,
    most_similar,
    similarity_to_people,
    strangers,
    swapped_identities,
)
from pipeline_steps.metrics.arrays import blocks
from pipeline_steps.metrics.references import Fidelity
from pipeline_steps.naming import REAL, VARIANT, WILD

Verdict = Literal["pass", "look", "fail"]
SEVERITY: tuple[Verdict, ...] = ("pass", "look", "fail")
CHANCE = 0.99  # how often independent images yield no more strangers than pass
# Check to the column of its verdict.
VERDICTS = {check: f"{check}_verdict" for check in ("swaps", "collisions", "copies", "strangers")}
SAMPLE_COLUMNS = (
    *("identity", "file"),
    "shows",  # own: the person meant; other: another consented person; nobody: neither
    *("own_similarity", "own_rank", "nearest_identity", "nearest_similarity"),
    *("photograph", "photograph_similarity", "pixel_photograph", "pixel_similarity", "copy"),
    *("psnr", "ssim"),
    *("wild_file", "wild_similarity", "stranger"),
)
SUMMARY_COLUMNS = (
    *(*VARIANT, "recogniser", "n_images", "n_identities", "fmr"),
    *("image_threshold", "person_threshold", "search_threshold", "pixel_threshold"),
    *("own_share", "nobody_share"),
    *("swapped_images", "swapped_images_by_chance", "swapped_identities"),
    *("collisions", "collisions_of_photographs", "copies", "psnr", "ssim"),
    *("strangers", "strangers_by_chance", "stranger_identities"),
    *(*VERDICTS.values(), "verdict", "sentence"),
)
GENERATED = "generated"
PATCHES = 512  # images whose pixels are in memory together
PAIR_COLUMNS = (
    *("check", "rank", "flagged", "identity", "file"),
    "other_set",  # generated, real or wild
    *("other_identity", "other_file", "similarity", "threshold", "note"),
)
Suspect = tuple[float, dict[str, Any]]  # how suspicious a pair of images is, and its row


@dataclass(frozen=True)
class Evidence:
    """What the audit of one variant looks at.

    Attributes:
        images, photographs: the generated images, and those of the consented people.
        wild: the reference set, or None.
        patches: reads an image's pixels by its file; None where it cannot be read.
        photograph_patches: pixels of the photographs, of those that could be read.
        thresholds: from which things count as one person.
        pixel_threshold: from which an image is a copy; NaN: not judged.
        fidelity: agreement with the person's closest photograph, by file.
        fmr, search_rate: the rates behind the thresholds.
    """

    images: Faces
    photographs: Faces
    wild: Faces | None
    patches: Callable[[str], Patches | None]
    photograph_patches: Mapping[str, Patches]
    thresholds: Thresholds
    pixel_threshold: float
    fidelity: Mapping[str, Fidelity]
    fmr: float
    search_rate: float


@dataclass(frozen=True)
class Audit:
    """Rows of SAMPLE_COLUMNS, pairs of identities, and SUMMARY_COLUMNS without the first names."""

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
        **{name: _mean(row[name] for row in samples) for name in Fidelity._fields},
        "strangers": sum(row["stranger"] for row in samples),
        "strangers_by_chance": math.nan if wild is None else evidence.search_rate * n,
        "stranger_identities": 0 if wild is None else len(strangers(images, wild, limits.search)),
    }
    return Audit(samples, collisions, counts | verdicts(counts))


def not_audited(why: str, fmr: float) -> Audit:
    """The audit of a variant that has nothing to be audited, for a person to look at."""
    counts: dict[str, Any] = {"n_images": 0, "n_identities": 0, "fmr": fmr}
    found = dict.fromkeys((*VERDICTS.values(), "verdict"), "look")
    return Audit([], [], counts | found | {"sentence": f"look: {why}."})


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
        agreement = evidence.fidelity.get(file, Fidelity(math.nan, math.nan))
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
                **agreement._asdict(),
                "wild_file": wild_files[index],
                "wild_similarity": float(wild_similarity[index]),
                "stranger": bool(wild_similarity[index] >= limits.search),
            }
        )
    return rows


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are finite: an equal image has no PSNR; NaN: there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _pixel_matches(evidence: Evidence, nearest: Sequence[str]) -> dict[str, tuple[str, float]]:
    """The closest photograph in pixels, among those of the person meant and of the nearest one.

    A copy of anybody else's photograph would make that person the nearest.
    """
    images, photographs, known = evidence.images, evidence.photographs, evidence.photograph_patches
    wanted: dict[str, list[str]] = {}
    for file, meant, closest in zip(images.files, images.identities, nearest, strict=True):
        for name in {str(meant), closest}:
            wanted.setdefault(name, []).append(file)
    found: dict[str, tuple[str, float]] = {}
    for name, files in wanted.items():
        owned = zip(photographs.files, photographs.identities, strict=True)
        theirs = [file for file, owner in owned if owner == name and file in known]
        if not theirs:
            continue
        their_patches = np.stack([known[file] for file in theirs])
        for part in blocks(len(files), PATCHES):
            read = {file: evidence.patches(file) for file in files[part]}
            mine = {file: patch for file, patch in read.items() if patch is not None}
            if not mine:
                continue
            similarity = pixel_similarity(np.stack(list(mine.values())), their_patches)
            for file, row in zip(mine, similarity, strict=True):
                best = int(row.argmax())
                if file not in found or row[best] > found[file][1]:
                    found[file] = (theirs[best], float(row[best]))
    return found


def verdicts(counts: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict per check and over all, and one sentence, from the numbers of SUMMARY_COLUMNS.

    fail: an identity shows another person on the whole, two identities are one that their
    photographs tell apart, or an image is a near copy. look: single images are suspicious, or the
    check could not be made. For strangers as many images as chance explains pass.
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
    n, expected = counts["n_images"], counts["strangers_by_chance"]
    if not math.isnan(expected):
        at_most = special.bdtr(np.arange(n), n, min(1.0, expected / n))
        most = int(np.searchsorted(at_most, CHANCE))  # scipy.stats takes a second to load
        found["strangers"] = _grade(counts["stranger_identities"], counts["strangers"] > most)
    overall = max(found.values(), key=SEVERITY.index)
    columns: dict[str, Any] = {VERDICTS[check]: verdict for check, verdict in found.items()}
    return columns | {"verdict": overall, "sentence": _sentence(overall, counts)}


def _grade(failures: int, doubts: int | bool) -> Verdict:
    return "fail" if failures else "look" if doubts else "pass"


def _sentence(overall: Verdict, counts: Mapping[str, Any]) -> str:
    """The verdict and what speaks for it; what was not found is not listed."""

    def several(key: str, one: str, many: str, rest: str) -> str:
        return f"{counts[key]} {one if counts[key] == 1 else many} {rest}"

    shows, whole = ("identity shows", "identities show"), "on the whole"
    by_chance = f"(by chance {counts['swapped_images_by_chance']:.1f} at most)"
    expected = f"({counts['strangers_by_chance']:.1f} expected by chance)"
    told = {
        "swapped_identities": (*shows, f"another consented person {whole}"),
        "swapped_images": ("image shows", "images show", f"another consented person {by_chance}"),
        "collisions": ("pair of identities is", "pairs of identities are", "not told apart"),
        "copies": ("image is a near copy", "images are near copies", "of a photograph"),
        "stranger_identities": (*shows, f"somebody of the in-the-wild set {whole}"),
        "strangers": (
            "image resembles",
            "images resemble",
            f"somebody of the in-the-wild set {expected}",
        ),
    }
    parts = [several(key, *words) for key, words in told.items() if counts[key]]
    if math.isnan(counts["pixel_threshold"]):
        parts.append("copies were not looked for: nobody has two photographs")
    if math.isnan(counts["strangers_by_chance"]):
        parts.append("there is no reference set to look for strangers in")
    return f"{overall}: {'; '.join(parts) or 'nothing suspicious'}."


def suspicious_pairs(evidence: Evidence, result: Audit, count: int) -> list[dict[str, Any]]:
    """So many pairs of every check, flagged ones first, then the closest of those that passed.

    Returns:
        Rows of PAIR_COLUMNS. `similarity` and `threshold` are what the check compares: the mean
        similarity to a person (swaps), the median of two identities' image pairs (collisions), the
        agreement of pixels (copies), the similarity of the two images (strangers).
    """
    found = {
        "swaps": _swaps(evidence, result),
        "collisions": _collisions(evidence, result),
        "copies": _copies(evidence, result),
        "strangers": _strangers(evidence, result),
    }
    rows = []
    for check, pairs in found.items():
        ranked = sorted(pairs, key=lambda pair: (not pair[1]["flagged"], -pair[0]))
        for rank, (_, pair) in enumerate(ranked[:count], start=1):
            rows.append({"check": check, "rank": rank} | pair)
    return rows


def _swaps(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    """Images of which another person than the one meant is the nearest, by their advantage."""
    photographs, limit = evidence.photographs, evidence.thresholds.person
    for image, row in zip(evidence.images.embeddings, result.samples, strict=True):
        nearest, similarity = row["nearest_identity"], row["nearest_similarity"]
        if nearest == row["identity"]:
            continue
        theirs = np.flatnonzero(photographs.identities == nearest)
        best = theirs[int((photographs.embeddings[theirs] @ image).argmax())]
        other, own = (REAL, nearest, photographs.files[best]), row["own_similarity"]
        note = f"to {row['identity']} itself {own:.2f}"
        pair = _pair(row, other, similarity, limit, row["shows"] == "other", note)
        yield similarity - (0.0 if np.isnan(own) else own), pair


def _collisions(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    limit = evidence.thresholds.image
    for found in result.collisions:
        first, second = (result.samples[row] for row in found.rows)
        other, flagged = (GENERATED, found.second, second["file"]), found.similarity >= limit
        note = f"their photographs {found.photographs:.2f}"
        yield found.similarity, _pair(first, other, found.similarity, limit, flagged, note)


def _copies(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    owners = dict(zip(evidence.photographs.files, evidence.photographs.identities, strict=True))
    for row in result.samples:
        file, pixel = row["pixel_photograph"], row["pixel_similarity"]
        if file:
            note = f"recogniser {row['photograph_similarity']:.2f}"
            other, limit = (REAL, str(owners[file]), file), evidence.pixel_threshold
            yield pixel, _pair(row, other, pixel, limit, row["copy"], note)


def _strangers(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    wild = evidence.wild
    owners = dict(zip(wild.files, wild.identities, strict=True)) if wild is not None else {}
    for row in result.samples if owners else ():
        file, similarity = row["wild_file"], row["wild_similarity"]
        other, limit = (WILD, str(owners[file]), file), evidence.thresholds.search
        note = f"to {row['identity']} {row['own_similarity']:.2f}"
        yield similarity, _pair(row, other, similarity, limit, row["stranger"], note)


def _pair(
    row: dict[str, Any],
    other: tuple[str, str, str],
    similarity: float,
    threshold: float,
    flagged: bool,
    note: str,
) -> dict[str, Any]:
    found = {"flagged": flagged, "similarity": similarity, "threshold": threshold, "note": note}
    there = dict(zip(("other_set", "other_identity", "other_file"), other, strict=True))
    return found | {"identity": row["identity"], "file": row["file"]} | there
