"""Pair lists of the rendered benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline_steps.demo_world.rendering.population import BENCHMARKS, Pair, build_pairs


def gaps(pairs: list[Pair], key: str) -> np.ndarray:
    return np.array(
        [abs(np.subtract(*(getattr(how, key) for how in p.circumstances))) for p in pairs]
    )


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_folds_are_balanced_and_share_no_person(name: str) -> None:
    pairs = build_pairs(name, 80, seed=5)
    people: set[int] = set()
    for start in range(0, 80, 8):
        fold = pairs[start : start + 8]
        assert [pair.same for pair in fold] == [True] * 4 + [False] * 4
        members = {seed for pair in fold for seed in pair.people}
        assert len(members) == 4
        assert not members & people
        people |= members
        for pair in fold:
            assert len({how.seed for how in pair.circumstances}) == 2


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_circumstances_tell_nothing_about_sameness(name: str) -> None:
    pairs = build_pairs(name, 1000, seed=3)
    for key in ("yaw", "age"):
        apart = {
            same: [
                gap for gap, pair in zip(gaps(pairs, key), pairs, strict=True) if pair.same == same
            ]
            for same in (True, False)
        }
        assert stats.ks_2samp(apart[True], apart[False]).pvalue > 0.001


def test_each_benchmark_tests_what_its_name_says() -> None:
    pairs = {name: build_pairs(name, 200, seed=2) for name in BENCHMARKS}
    assert gaps(pairs["age_gap"], "age") == pytest.approx(0.5)
    assert gaps(pairs["cross_age"], "age").min() >= 0.25
    assert gaps(pairs["cross_age"], "age").std() > 0.1
    assert gaps(pairs["cross_pose"], "yaw").min() >= 35
    assert gaps(pairs["plain"], "age").max() <= 0.1
    for pair in pairs["frontal_profile"]:
        frontal, profile = pair.circumstances
        assert abs(frontal.yaw) <= 8
        assert 40 <= abs(profile.yaw) <= 60


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_ages_and_angles_stay_in_range(name: str) -> None:
    for pair in build_pairs(name, 400, seed=9):
        for how in pair.circumstances:
            assert 0 <= how.age <= 1
            assert abs(how.yaw) <= 60
            assert abs(how.pitch) <= 15
            assert abs(how.roll) <= 15


def test_the_same_seed_gives_the_same_pairs_and_benchmarks_have_their_own_people() -> None:
    assert build_pairs("plain", 40, seed=1) == build_pairs("plain", 40, seed=1)
    everybody = [
        pair.people[0] for name in BENCHMARKS for pair in build_pairs(name, 40, 1) if pair.same
    ]
    assert len(set(everybody)) == len(everybody)
    assert not set(everybody) & {pair.people[0] for pair in build_pairs("plain", 40, seed=2)}


@pytest.mark.parametrize("n_pairs", [0, 20, 50, 110])
def test_unfit_numbers_of_pairs_are_refused(n_pairs: int) -> None:
    with pytest.raises(ValueError, match="multiple of 20"):
        build_pairs("plain", n_pairs, seed=0)
