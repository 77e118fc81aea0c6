from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline_steps.evidence.audit import resemblance
from pipeline_steps.evidence.audit.checks import verdicts
from pipeline_steps.evidence.audit.resemblance import (
    closest_identities,
    faces_of,
    similarity_to_people,
    strangers,
    swapped_identities,
    threshold_at,
    thresholds_from,
)


def faces(rng: np.random.Generator, people: dict[str, np.ndarray], images: int, noise: float):
    names = [name for name in people for _ in range(images)]
    rows = np.stack([people[name] for name in names])
    rows = rows + noise * rng.standard_normal(rows.shape)
    return faces_of(rows, names, [f"{name}/{i}.png" for i, name in enumerate(names)])


@pytest.fixture
def people() -> dict[str, np.ndarray]:
    return {f"ID_{i}": row for i, row in enumerate(np.eye(16)[:6])}


@pytest.mark.parametrize(("rate", "accepted"), [(0.0, 0), (0.1, 1), (0.35, 3), (1.0, 9)])
def test_the_threshold_accepts_at_most_the_rate(rate: float, accepted: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(10.0))
    assert (scores >= threshold_at(scores, rate)).sum() == accepted


def test_tied_impostors_are_all_rejected_rather_than_all_accepted() -> None:
    assert threshold_at([1.0, 1.0, 0.0, 0.0], 0.25) > 1.0


def test_thresholds_are_those_of_all_impostor_pairs(people: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    photographs, wild = faces(rng, people, 120, 0.3), faces(rng, {"x": np.ones(16)}, 50, 0.5)
    limits = thresholds_from(photographs, wild, fmr=0.01, search_rate=0.05)
    rows, names = photographs.embeddings, photographs.identities
    first, second = np.triu_indices(len(rows), 1)
    impostors = (rows @ rows.T)[first, second][names[first] != names[second]]
    assert limits.image == threshold_at(impostors, 0.01)
    assert (impostors >= limits.image).mean() == pytest.approx(0.01, abs=1e-4)
    best = (rows @ wild.embeddings.T).max(axis=1)
    assert limits.search == max(limits.image, threshold_at(best, 0.05))
    assert math.isnan(thresholds_from(photographs, None, fmr=0.01, search_rate=0.05).search)


def test_similarity_to_a_person_is_the_mean_over_the_photographs(
    people: dict[str, np.ndarray],
) -> None:
    rng = np.random.default_rng(2)
    photographs, images = faces(rng, people, 4, 0.2), faces(rng, people, 2, 0.2)
    similarity, names = similarity_to_people(images, photographs)
    own = photographs.embeddings[photographs.identities == names[3]]
    assert np.allclose(similarity[:, 3], (images.embeddings @ own.T).mean(axis=1))


def test_exchanged_merged_and_foreign_identities_are_told_apart(
    people: dict[str, np.ndarray],
) -> None:
    rng = np.random.default_rng(3)
    photographs = faces(rng, people, 8, 0.1)
    foreign = np.eye(16)[10]
    shown = dict(people)
    shown["ID_0"], shown["ID_1"] = people["ID_1"], people["ID_0"]
    shown["ID_2"] = shown["ID_3"] = foreign
    images, wild = faces(rng, shown, 6, 0.1), faces(rng, {"w": foreign, "v": np.eye(16)[11]}, 1, 0)
    limits = thresholds_from(photographs, wild, fmr=0.001, search_rate=0.01)
    similarity, names = similarity_to_people(images, photographs)
    swapped = swapped_identities(similarity, names, images.identities, limits.person)
    assert swapped == {"ID_0": "ID_1", "ID_1": "ID_0"}
    first, second, *_ = closest_identities(images, photographs)
    assert (first.first, first.second) == ("ID_2", "ID_3")
    assert first.similarity >= limits.image > second.similarity
    assert first.photographs < limits.image
    assert strangers(images, wild, limits.search) == {"ID_2": 0, "ID_3": 0}


COUNTS = {
    "n_images": 100,
    "pixel_threshold": 0.98,
    "swapped_images": 0,
    "swapped_images_by_chance": 0.5,
    "swapped_identities": 0,
    "collisions": 0,
    "collisions_of_photographs": 0,
    "copies": 0,
    "strangers": 0,
    "strangers_by_chance": 1.0,
    "stranger_identities": 0,
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "pass"),
        ({"swapped_images": 1}, "look"),
        ({"swapped_images": 9, "swapped_identities": 1}, "fail"),
        ({"collisions": 1, "collisions_of_photographs": 1}, "look"),  # they look alike themselves
        ({"collisions": 2, "collisions_of_photographs": 1}, "fail"),
        ({"copies": 1}, "fail"),
        ({"strangers": 4}, "pass"),  # 99 % of binomial draws of 100 at 1 % are 4 at most
        ({"strangers": 5}, "look"),
        ({"stranger_identities": 1}, "fail"),
        ({"pixel_threshold": math.nan}, "look"),
        ({"strangers_by_chance": math.nan}, "look"),
    ],
)
def test_verdicts(changes: dict[str, float], verdict: str) -> None:
    found = verdicts(COUNTS | changes)
    assert found["verdict"] == verdict
    assert found["sentence"].startswith(f"{verdict}: ")


def test_of_very_many_people_those_are_compared_that_could_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    people = {f"P{n}": rng.standard_normal(32) for n in range(40)}
    people["P7"] = people["P31"]
    images = faces(rng, people, 3, 0.3)
    every = closest_identities(images, images)
    monkeypatch.setattr(resemblance, "MOST_PAIRS", 60)
    monkeypatch.setattr(resemblance, "BLOCK_ROWS", 16)
    fewer = closest_identities(images, images)
    assert (len(every), len(fewer)) == (780, 60)
    assert fewer[:10] == every[:10] and {fewer[0].first, fewer[0].second} == {"P7", "P31"}
