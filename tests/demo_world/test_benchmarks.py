"""Pair lists of the rendered benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline_steps.demo_world.rendering.benchmarks import (
    BENCHMARKS,
    Nuisance,
    build_pairs,
    render_pairs,
)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_folds_are_balanced_and_share_no_person(name: str) -> None:
    pairs = build_pairs(name, 80, seed=5)
    people: set[int] = set()
    for start in range(0, 80, 8):
        fold = pairs[start : start + 8]
        assert [pair.same for pair in fold] == [True] * 4 + [False] * 4
        members = {seed for pair in fold for seed in (pair.identity_a, pair.identity_b)}
        assert len(members) == 4
        assert not members & people
        people |= members
        for pair in fold:
            assert pair.same == (pair.identity_a == pair.identity_b)
            assert pair.nuisance_a["seed"] != pair.nuisance_b["seed"]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_circumstances_tell_nothing_about_sameness(name: str) -> None:
    pairs = build_pairs(name, 1000, seed=3)
    for key in ("yaw", "age"):
        gaps = {
            same: [
                abs(pair.nuisance_a[key] - pair.nuisance_b[key])
                for pair in pairs
                if pair.same == same
            ]
            for same in (True, False)
        }
        assert stats.ks_2samp(gaps[True], gaps[False]).pvalue > 0.001


def gaps(name: str, key: str) -> np.ndarray:
    pairs = build_pairs(name, 200, seed=2)
    return np.array([abs(pair.nuisance_a[key] - pair.nuisance_b[key]) for pair in pairs])


def test_each_benchmark_tests_what_its_name_says() -> None:
    assert gaps("age_gap", "age") == pytest.approx(0.5)
    assert gaps("cross_age", "age").min() >= 0.25
    assert gaps("cross_age", "age").std() > 0.1
    assert gaps("cross_pose", "yaw").min() >= 35
    assert gaps("plain", "age").max() <= 0.1
    for pair in build_pairs("frontal_profile", 200, seed=2):
        assert abs(pair.nuisance_a["yaw"]) <= 8
        assert 40 <= abs(pair.nuisance_b["yaw"]) <= 60


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_ages_and_angles_stay_in_range(name: str) -> None:
    for pair in build_pairs(name, 400, seed=9):
        for nuisance in (pair.nuisance_a, pair.nuisance_b):
            assert 0 <= nuisance["age"] <= 1
            assert abs(nuisance["yaw"]) <= 60
            assert abs(nuisance["pitch"]) <= 15
            assert abs(nuisance["roll"]) <= 15


def test_the_same_seed_gives_the_same_pairs_and_benchmarks_have_their_own_people() -> None:
    assert build_pairs("plain", 40, seed=1) == build_pairs("plain", 40, seed=1)
    everybody = [
        pair.identity_a for name in BENCHMARKS for pair in build_pairs(name, 40, 1) if pair.same
    ]
    assert len(set(everybody)) == len(everybody)
    assert not set(everybody) & {pair.identity_a for pair in build_pairs("plain", 40, seed=2)}


def test_images_come_in_the_order_of_a_bin_file() -> None:
    pairs = build_pairs("plain", 40, seed=1)
    asked: list[tuple[int, Nuisance]] = []

    def render(identity: int, nuisance: Nuisance) -> np.ndarray:
        asked.append((identity, nuisance))
        return np.full((112, 112, 3), len(asked), dtype=np.uint8)

    images, same = render_pairs(pairs, render)
    assert images.shape == (80, 112, 112, 3)
    assert images[:, 0, 0, 0].tolist() == list(range(1, 81))
    assert asked[6] == (pairs[3].identity_a, pairs[3].nuisance_a)
    assert asked[7] == (pairs[3].identity_b, pairs[3].nuisance_b)
    assert same.tolist() == [pair.same for pair in pairs]


@pytest.mark.parametrize("n_pairs", [0, 20, 50, 110])
def test_unfit_numbers_of_pairs_are_refused(n_pairs: int) -> None:
    with pytest.raises(ValueError, match="multiple of 20"):
        build_pairs("plain", n_pairs, seed=0)
