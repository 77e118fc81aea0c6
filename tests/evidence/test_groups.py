"""Groups of people: equal ones are found equal, a group with worse images is found."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.evidence.names import WORST_TO_BEST
from pipeline_steps.evidence.scores import groups as scored
from pipeline_steps.evidence.scores.groups import COMPARED, Grouped, group_rows
from pipeline_steps.evidence.scores.sets import ImageSet
from pipeline_steps.metrics import pairs
from pipeline_steps.metrics.pairs import compare
from pipeline_steps.metrics.verification import comparison_error_rates
from pipeline_steps.study.settings.evidence import GroupsSettings

SETTINGS = GroupsSettings(min_people=4, fmr=0.01)


def world(
    seed: int, groups: dict[str, int], noise: dict[str, float] | None = None, images: int = 5
) -> tuple[Grouped, dict[str, dict[str, list[str]]]]:
    """Photographs and samples of people, some of whose samples show no face; in the groups that
    `noise` names samples are that much further from the person."""
    rng = np.random.default_rng(seed)
    members = {name: [f"{name}{number}" for number in range(size)] for name, size in groups.items()}
    rows: dict[str, list] = {"photographs": [], "samples": [], "quality": [], "owners": []}
    counts = {}
    for group, people in members.items():
        for person in people:
            own, spread = rng.normal(size=12), rng.uniform(0.7, 1.1)
            worse = (noise or {}).get(group, 0.0)
            found = 0
            for _ in range(images):
                rows["photographs"].append((person, own + 0.4 * rng.normal(size=12)))
                if rng.random() < 0.9 - 0.5 * worse:
                    found += 1
                    rows["samples"].append((person, own + (spread + worse) * rng.normal(size=12)))
                    rows["quality"].append(2.0 + 0.2 * rng.normal() - worse)
            counts[person] = {"images": images, "faces": found}

    def images_of(name: str) -> ImageSet:
        owners = [person for person, _ in rows[name]]
        features = np.array([row for _, row in rows[name]], np.float32)
        quality = np.resize(np.array(rows["quality"], np.float32), (len(owners), 1))
        skin = np.full((len(owners), 1), 30.0, np.float32)
        return ImageSet(owners, owners, {"judge": features, "quality": quality, "skin": skin})

    table = pd.DataFrame.from_dict(counts, orient="index")
    found = Grouped(images_of("samples"), images_of("photographs"), table, "quality", "skin")
    return found, {"gender": members}


def ratios(seed: int, groups: dict[str, int], **given: dict[str, float]) -> dict:
    (last,) = [
        row
        for row in group_rows(world(seed, groups, **given)[0], "judge", members(groups), SETTINGS)
        if row["group"] == WORST_TO_BEST
    ]
    return last


def members(groups: dict[str, int]) -> dict[str, dict[str, list[str]]]:
    return {"gender": {name: [f"{name}{i}" for i in range(size)] for name, size in groups.items()}}


def leaves_out_one(row: dict, measure: str) -> bool:
    name = measure.removesuffix("_mean")
    return bool(row[f"{name}_low"] > 1.0 or row[f"{name}_high"] < 1.0)


@pytest.mark.parametrize("groups", [{"F": 10, "M": 10}, {"a": 8, "b": 8, "c": 8}])
def test_equal_groups_are_told_apart_no_more_often_than_the_level_says(
    groups: dict[str, int],
) -> None:
    trials = 60
    rows = [ratios(seed, groups) for seed in range(trials)]
    for measure in ("faces", "eer", "fnmr", "fdr", "quality_mean"):
        found = sum(leaves_out_one(row, measure) for row in rows)
        assert found <= 0.05 * trials + 2 * math.sqrt(0.05 * 0.95 * trials), measure


def test_a_group_whose_images_are_worse_is_found_and_named() -> None:
    row = ratios(0, {"F": 16, "M": 16}, noise={"M": 1.2})
    for measure in ("faces", "eer", "fnmr", "fdr", "quality_mean"):
        assert leaves_out_one(row, measure), measure
        assert measure in row["note"]
    assert row["fnmr"] > 1.0 > row["fdr"]  # the worst over the best one


def test_all_groups_are_held_against_the_threshold_of_everybody() -> None:
    found, groups = world(1, {"F": 8, "M": 8}, {"M": 0.5})
    by_group = {row["group"]: row for row in group_rows(found, "judge", groups, SETTINGS)}
    photographs = found.photographs
    assert photographs is not None
    samples = found.images
    everybody = compare(
        samples.features["judge"],
        samples.identities,
        photographs.features["judge"],
        photographs.identities,
    )
    pooled = comparison_error_rates(everybody).fmr100
    weights = {group: len(samples.of(groups["gender"][group])) for group in "FM"}
    mean = sum(weights[group] * by_group[group]["fnmr"] for group in "FM") / sum(weights.values())
    assert mean == pytest.approx(pooled)
    assert by_group["F"]["fnmr"] < pooled < by_group["M"]["fnmr"]
    assert {row["threshold"] for row in by_group.values()} == {by_group["F"]["threshold"]}
    missed = found.counts["images"] - found.counts["faces"]
    assert by_group["F"]["faces"] == pytest.approx(1 - missed[groups["gender"]["F"]].sum() / 40)


@pytest.mark.parametrize("fmr", [0.01, 0.03])
def test_many_pairs_give_groups_the_rates_of_all_scores(
    fmr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, members = world(1, {"F": 12, "M": 12}, {"M": 0.5})
    settings = GroupsSettings(min_people=4, fmr=fmr)
    listed = group_rows(found, "judge", members, settings)
    monkeypatch.setattr(scored, "MAX_PAIRS", 0)
    monkeypatch.setattr(pairs, "WITHIN", 0)  # levels far from the thresholds are counted whole
    monkeypatch.setattr(pairs, "AROUND", 0)
    condensed = group_rows(found, "judge", members, settings)
    for one, two in zip(listed, condensed, strict=True):
        for name in ("fnmr", "fmr"):
            assert two[name] == pytest.approx(one[name], rel=1e-9), (name, one["group"])
        assert two["threshold"] == pytest.approx(one["threshold"], abs=1e-7)


def test_a_group_of_few_people_has_no_numbers_and_says_why() -> None:
    found, groups = world(2, {"F": 6, "M": 3})
    rows = group_rows(found, "judge", groups, SETTINGS)
    assert [row["group"] for row in rows] == ["F", "M"]  # and nothing to compare
    assert rows[1]["note"] == "fewer than 4 people"
    assert not set(COMPARED) & set(rows[1])


def test_where_too_few_impostors_tell_the_rate_only_the_rates_at_it_are_missing() -> None:
    found, groups = world(3, {"F": 4, "M": 4})
    rare = GroupsSettings(min_people=4, fmr=1e-6)
    row = group_rows(found, "judge", groups, rare)[0]
    assert "fnmr" not in row and "eer" in row
    assert "too few impostor pairs" in row["note"]
