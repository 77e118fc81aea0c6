"""Positions in file names against estimated yaw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.identities.candidates import Collection
from pipeline_steps.identities.dataset_report import (
    dataset_report,
    not_following,
    unexpected,
    yaw_by_position,
)
from pipeline_steps.study.freeze import UNCHECKED
from pipeline_steps.study.settings.photographs import ExpectedSettings

FRONTAL = np.array([[38.3, 51.7], [73.5, 51.5], [56, 71.7], [41.5, 92.4], [70.7, 92.2]])


def rows(identity, order, way=1.0):
    """Kept images whose nose moves evenly along the given positions."""
    for place, position in enumerate(order):
        turned = FRONTAL.copy()
        turned[2, 0] += way * 3.0 * (place - (len(order) - 1) / 2)
        yield {
            "identity": identity,
            "position": position,
            "landmarks": turned.ravel(),
            "kept": True,
        }


def test_the_correlation_is_one_where_yaw_follows_the_position():
    found = yaw_by_position(list(rows("ID_1", range(1, 8))), 112)
    assert found == {"ID_1": pytest.approx(1.0)}
    found = yaw_by_position(list(rows("ID_1", range(1, 8), way=-1.0)), 112)
    assert found == {"ID_1": pytest.approx(-1.0)}


def test_it_is_spearmans_coefficient():
    order = [4, 1, 7, 2, 6, 3, 5]
    ranks = np.argsort(np.argsort(order))
    expected = 1 - 6 * np.sum((ranks - np.arange(7)) ** 2) / (7 * 48)
    found = yaw_by_position(list(rows("ID_1", order)), 112)
    assert found["ID_1"] == pytest.approx(expected)


def test_people_with_few_images_or_positions_are_not_judged():
    few = list(rows("ID_1", [1, 2, 3, 4])) + list(rows("ID_2", [1, 1, 1, 2, 2, 2]))
    assert yaw_by_position(few, 112) == {}
    assert not_following({}) == []


def test_who_turns_the_other_way_than_most_does_not_follow():
    assert not_following({"a": -0.9, "b": -1.0, "c": 0.95, "d": -0.5}) == ["c", "d"]
    assert not_following({"a": 0.9, "b": 0.8, "c": float("nan")}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [([2024], []), ([1, 2, 4], ["3"]), ([2023, 2024], []), ([1, 2, 20240101], [])],
)
def test_only_numbers_that_count_participants_can_be_missing(numbers, missing):
    identities = [f"ID_{number}" for number in numbers]
    report = dataset_report([], identities, Collection((), {}, (), {}, {}), 64)
    assert report["missing_numbers"] == missing
    photographs = pd.DataFrame(columns=["source", "camera", "position"])
    for expected, told in ((ExpectedSettings(), missing), (UNCHECKED, [])):
        found = unexpected(report, photographs, expected)
        named = [one["which"] for one in found if "numbers are missing" in one["finding"]]
        assert named == ([told] if told else [])
