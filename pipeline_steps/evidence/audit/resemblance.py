"""Whom generated images resemble: consented people, each other, people of a reference set.

Thresholds come from photographs whose identities are known, at a chosen false match rate, so that
"resembles" means what it means to a verification system that works at that rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Undefined, blocks, feature_matrix, rows_of, unit_rows

Rows = NDArray[np.float64]
BLOCK_ROWS = 512
MOST_PAIRS = 200_000  # of identities that are compared image by image: up to 633 people all
ONE_PERSON = "a threshold needs impostor scores, photographs of two people at least"


@dataclass(frozen=True)
class Faces:
    """Embeddings of one set of images, rows of length 1 float64 [n, d]; whose and which each is."""

    embeddings: Rows
    identities: NDArray[np.str_]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def people(self) -> list[str]:
        """Names of the identities, sorted."""
        return [str(name) for name in np.unique(self.identities)]


def faces_of(embeddings: ArrayLike, identities: Sequence[str], files: Sequence[str]) -> Faces:
    """Faces from embeddings [n, d] of any length and n names of either kind, n >= 1.

    Raises:
        Undefined: no image.
        ValueError: wrong shapes, a zero row, or values that are not finite.
    """
    rows = unit_rows(feature_matrix(embeddings, name="face"), name="face")
    if not len(rows) == len(identities) == len(files):
        raise ValueError(f"{len(rows)} rows, {len(identities)} identities, {len(files)} files")
    return Faces(rows, np.asarray(identities, dtype=str), tuple(files))


@dataclass(frozen=True)
class Thresholds:
    """Similarities from which two things count as one person.

    Attributes:
        image: one image against another.
        person: the mean of one image against all photographs of a person.
        search: one image against the most similar one of the reference set; NaN without the set.
    """

    image: float
    person: float
    search: float = math.nan


def threshold_at(impostors: ArrayLike, rate: float) -> float:
    """Lowest threshold at which at most this share of impostor scores is accepted (score >= it).

    Where `rate` is below one score's share, it lies just above the highest score.

    Raises:
        Undefined: no score.
    """
    scores = np.asarray(impostors, dtype=np.float64).reshape(-1)
    if scores.size == 0:
        raise Undefined(ONE_PERSON)
    allowed = min(int(rate * scores.size), scores.size - 1)
    return _just_above(np.partition(scores, -allowed - 1)[-allowed - 1])


def thresholds_from(
    photographs: Faces, wild: Faces | None, *, fmr: float, search_rate: float
) -> Thresholds:
    """Thresholds at which photographs are taken for another person at the given rates.

    Args:
        photographs: images of at least two people.
        wild: images of other people, or None.
        fmr: false match rate of `image` and `person`.
        search_rate: share of the photographs that may match anybody in `wild`; the threshold never
            lies below `image`.

    Raises:
        Undefined: photographs of a single person.
    """
    image = _just_above(_first_rejected(photographs, fmr))
    similarity, people = similarity_to_people(photographs, photographs)
    others = similarity[photographs.identities[:, None] != np.asarray(people)[None, :]]
    search = math.nan
    if wild is not None:
        best, _ = most_similar(photographs, wild)
        search = max(image, threshold_at(best, search_rate))
    return Thresholds(image, threshold_at(others, fmr), search)


def similarity_to_people(images: Faces, photographs: Faces) -> tuple[Rows, list[str]]:
    """Mean similarity of each image to all photographs of each person [n, p], and the names."""
    people = photographs.people
    means = [photographs.embeddings[photographs.identities == p].mean(axis=0) for p in people]
    return images.embeddings @ np.stack(means).T, people


def most_similar(images: Faces, reference: Faces) -> tuple[Rows, NDArray[np.intp]]:
    """Similarity and row of the reference image that is closest to each image, [n] and [n]."""
    values, rows = np.empty(len(images)), np.empty(len(images), dtype=np.intp)
    for block in blocks(len(images), BLOCK_ROWS):
        similarity = images.embeddings[block] @ reference.embeddings.T
        rows[block] = similarity.argmax(axis=1)
        values[block] = similarity.max(axis=1)
    return values, rows


@dataclass(frozen=True)
class Collision:
    """Two generated identities that a typical pair of their images does not tell apart.

    Attributes:
        first, second: the identities.
        similarity: median similarity of all pairs of their generated images.
        photographs: the same of their photographs; NaN where one has none.
        rows: the pair of images that is closest to the median, rows of the generated set.
    """

    first: str
    second: str
    similarity: float
    photographs: float
    rows: tuple[int, int]


def closest_identities(images: Faces, photographs: Faces) -> list[Collision]:
    """Pairs of identities, the most similar first: all, or the `MOST_PAIRS` that could be it."""
    members = rows_of(images.identities)
    real = {n: photographs.embeddings[o] for n, o in rows_of(photographs.identities).items()}
    found = []
    for first, second in _pairs_of(images, members):
        rows, columns = members[first], members[second]
        similarity = images.embeddings[rows] @ images.embeddings[columns].T
        median = float(np.median(similarity))
        row, column = np.unravel_index(np.abs(similarity - median).argmin(), similarity.shape)
        known = first in real and second in real
        found.append(
            Collision(
                first,
                second,
                median,
                float(np.median(real[first] @ real[second].T)) if known else math.nan,
                (int(rows[row]), int(columns[column])),
            )
        )
    return sorted(found, key=lambda pair: -pair.similarity)


def _pairs_of(images: Faces, members: Mapping[str, NDArray[np.intp]]) -> Iterable[tuple[str, str]]:
    """All pairs of names; of more than `MOST_PAIRS` those of the highest mean similarity."""
    if len(members) * (len(members) - 1) // 2 <= MOST_PAIRS:
        return combinations(members, 2)
    means = np.stack([images.embeddings[rows].mean(axis=0) for rows in members.values()])
    best, pairs = np.empty(0), np.empty((0, 2), np.intp)
    for block in blocks(len(means), BLOCK_ROWS):
        similarity = means[block] @ means[block.start :].T
        rows, columns = np.nonzero(np.triu(np.ones_like(similarity, dtype=bool), 1))
        best = np.concatenate([best, similarity[rows, columns]])
        pairs = np.concatenate([pairs, np.stack([rows, columns], axis=1) + block.start])
        kept = np.argsort(-best, kind="stable")[:MOST_PAIRS]
        best, pairs = best[kept], pairs[kept]
    names = list(members)
    return [(names[first], names[second]) for first, second in pairs]


def swapped_identities(
    similarity: Rows, people: Sequence[str], identities: NDArray[np.str_], threshold: float
) -> dict[str, str]:
    """Identities whose images, on the whole, show another consented person, and whom.

    Args:
        similarity, people: from :func:`similarity_to_people`.
        identities: whom each image is meant to show [n].
        threshold: from which a mean similarity counts as that person.
    """
    found = {}
    for name, own in rows_of(identities).items():
        mean = similarity[own].mean(axis=0)
        nearest = int(mean.argmax())
        if people[nearest] != name and mean[nearest] >= threshold:
            found[name] = people[nearest]
    return found


def strangers(images: Faces, wild: Faces, threshold: float) -> dict[str, int]:
    """Identities of which half the images or more match one wild image, and that image's row."""
    found = {}
    for name, own in rows_of(images.identities).items():
        similarity = images.embeddings[own] @ wild.embeddings.T
        median = np.median(similarity, axis=0)
        if median.max() >= threshold:
            found[name] = int(median.argmax())
    return found


def _first_rejected(faces: Faces, rate: float) -> float:
    """The largest impostor score that may no longer match at this rate.

    Only the largest scores are kept while blocks of rows go by, so memory stays flat.
    """
    counts = np.unique(faces.identities, return_counts=True)[1]
    total = (len(faces) ** 2 - int((counts**2).sum())) // 2
    if total == 0:
        raise Undefined(ONE_PERSON)
    keep = min(int(rate * total), total - 1) + 1
    largest = np.empty(0)
    for block in blocks(len(faces), BLOCK_ROWS):
        rows = np.arange(block.start, block.stop)
        similarity = faces.embeddings[rows] @ faces.embeddings.T
        different = faces.identities[rows, None] != faces.identities[None, :]
        later = np.arange(len(faces))[None, :] > rows[:, None]
        largest = np.concatenate([largest, similarity[different & later]])
        if len(largest) > keep:
            largest = np.partition(largest, -keep)[-keep:]
    return float(largest.min())


def _just_above(value: float) -> float:
    return float(np.nextafter(value, math.inf))
