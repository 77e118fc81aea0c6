from __future__ import annotations

import time

import numpy as np
import pytest
from pyeer.eer_info import get_eer_stats
from scipy import stats

from pipeline_steps.metrics import pairs, verification
from pipeline_steps.metrics.intervals import (
    ROOT,
    draw_counts,
    error_rate_interval,
    jackknife_interval,
)
from pipeline_steps.metrics.pairs import Comparison, compare
from pipeline_steps.metrics.verification import (
    bootstrap_verification,
    comparison_error_rates,
    error_curve,
    error_rates,
    fisher_discriminant_ratio,
    fnmr_at_fmr,
    identity_error_rates,
)


def normal_scores(seed: int, n: int, m: int, decimals: int | None = None):
    rng = np.random.default_rng(seed)
    genuine, impostor = rng.normal(0.5, 0.2, n), rng.normal(0.0, 0.15, m)
    if decimals is not None:
        genuine, impostor = np.round(genuine, decimals), np.round(impostor, decimals)
    return genuine, impostor


def assert_equals_pyeer(genuine: np.ndarray, impostor: np.ndarray) -> None:
    ours = error_rates(genuine, impostor)
    theirs = get_eer_stats(list(genuine), list(impostor))
    assert ours.eer == pytest.approx(theirs.eer, abs=1e-12)
    assert ours.fmr100 == pytest.approx(theirs.fmr100, abs=1e-12)
    assert ours.fmr1000 == pytest.approx(theirs.fmr1000, abs=1e-12)
    assert ours.genuine_mean == pytest.approx(theirs.gmean, abs=1e-12)
    assert ours.genuine_sd == pytest.approx(theirs.gstd, abs=1e-12)
    assert ours.impostor_mean == pytest.approx(theirs.imean, abs=1e-12)
    assert ours.impostor_sd == pytest.approx(theirs.istd, abs=1e-12)
    assert ours.d_prime == pytest.approx(theirs.decidability, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (50, 50), (1000, 1000), (700, 4000)])
@pytest.mark.parametrize("decimals", [None, 2, 1], ids=["distinct", "ties", "many ties"])
def test_equals_pyeer(n: int, m: int, decimals: int | None) -> None:
    for seed in range(4):
        genuine, impostor = normal_scores(seed, n, m, decimals)
        if genuine.max() <= impostor.max():
            genuine[0] = impostor.max() + 0.1
        if n > 1 or genuine.std() > 0:
            assert_equals_pyeer(np.append(genuine, 0.3), np.append(impostor, 0.1))


def test_separable_sets_have_no_error() -> None:
    genuine, impostor = np.array([0.6, 0.7, 0.8]), np.array([-0.1, 0.0, 0.1, 0.2])
    assert_equals_pyeer(genuine, impostor)
    rates = error_rates(genuine, impostor)
    assert (rates.eer, rates.fmr100, rates.fmr1000) == (0.0, 0.0, 0.0)


def test_reversed_sets_are_all_error() -> None:
    genuine, impostor = np.array([-0.1, 0.0, 0.1]), np.array([0.6, 0.7, 0.8])
    assert_equals_pyeer(genuine, impostor)
    assert error_rates(genuine, impostor).eer == 1.0


def test_without_any_separating_threshold_the_error_is_one_half() -> None:
    # PyEER warns that its curves do not cross and returns 1 here.
    assert error_rates([0.5, 0.5], [0.5, 0.5, 0.5]).eer == 0.5
    with pytest.warns(RuntimeWarning, match="do not intersect"):
        assert get_eer_stats([0.5, 0.5], [0.5, 0.5, 0.5]).eer == 1


def test_equals_the_closed_form_for_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    rates = error_rates(rng.normal(1, 1, 200_000), rng.normal(-1, 1, 200_000))
    assert rates.eer == pytest.approx(0.158655, abs=2e-3)  # Phi(-1)
    assert rates.fmr100 == pytest.approx(0.627920, abs=6e-3)  # Phi(2.326348 - 2)
    assert rates.fdr == pytest.approx(2.0, abs=0.02)


def test_a_rate_counts_scores_at_the_threshold_as_matches() -> None:
    curve = error_curve([0.4, 0.8], [0.2, 0.4])
    assert curve.thresholds.tolist() == [0.2, 0.4, 0.8]
    assert curve.fmr.tolist() == [1.0, 0.5, 0.0]
    assert curve.fnmr.tolist() == [0.0, 0.0, 0.5]


def test_fnmr_at_any_fmr_by_both_rules() -> None:
    genuine, impostor = np.array([0.3, 0.5, 0.7, 0.9]), np.array([0.1, 0.2, 0.4, 0.6, 0.8])
    curve = error_curve(genuine, impostor)
    # FMR 0.4 holds from 0.5 on, FMR 0.2 from 0.7 on; 0.39 is closer to the first.
    assert fnmr_at_fmr(curve, 0.39) == 0.25
    assert fnmr_at_fmr(curve, 0.39, "at most") == 0.5
    assert fnmr_at_fmr(curve, 0.4, "at most") == 0.25
    assert fnmr_at_fmr(curve, 1.0, "at most") == 0.0
    assert fnmr_at_fmr(error_curve([0.1], [0.5]), 0.2, "at most") == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_equals_pyeer_on_one_sided_sets(seed: int) -> None:
    genuine, impostor = normal_scores(seed, 400, 500, 2)
    assert_equals_pyeer(genuine[genuine > 0.4], impostor)  # every genuine score is high
    assert_equals_pyeer(genuine, impostor[impostor < -0.1])
    assert_equals_pyeer(np.append(genuine[genuine < 0.3], 0.9), impostor[impostor > 0])


def test_equals_pyeer_on_many_scores() -> None:
    assert_equals_pyeer(*normal_scores(9, 20_000, 80_000, 3))


def test_fisher_ratio_of_constants() -> None:
    for noise in (0.0, 1e-8, 5e-7):  # as rounding leaves it
        assert np.isnan(fisher_discriminant_ratio(0.5 + noise, noise, 0.5, 0.0))
        assert fisher_discriminant_ratio(0.9, noise, 0.5, 0.0) == float("inf")
    assert fisher_discriminant_ratio(0.5, 1e-5, 0.5 + 1e-5, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("keep", [None, 0])
def test_a_collapsed_set_has_the_rates_of_guessing_whatever_its_rounding(keep: int | None) -> None:
    rng = np.random.default_rng(3)
    face = rng.standard_normal(512)
    for noise in (0.0, 1e-7, 3e-7):
        images = np.float32(face * (1 + noise * rng.standard_normal((12, 512))))
        found = comparison_error_rates(compare(images, list("aabbccddeeff"), keep=keep))
        assert (found.eer, found.n_genuine, found.n_impostor) == (0.5, 6, 60)
        undefined = (found.fdr, found.fdr_low, found.fmr100, found.fmr1000, found.d_prime)
        assert np.isnan(undefined).all(), noise


def test_without_pairs_of_a_kind_the_moments_of_the_other_are_left() -> None:
    rows = np.random.default_rng(4).standard_normal((4, 8))
    for keep in (None, 0):
        found = comparison_error_rates(compare(rows, list("abcd"), keep=keep))
        assert (found.n_genuine, found.n_impostor) == (0, 6)
        assert np.isfinite([found.impostor_mean, found.impostor_sd]).all()
        assert np.isnan([found.genuine_mean, found.eer, found.fdr, found.fmr100]).all()


def test_a_million_scores_take_about_a_second() -> None:
    genuine, impostor = normal_scores(0, 500_000, 500_000)
    start = time.process_time()
    error_rates(genuine, impostor)
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(("genuine", "impostor"), [([], [0.1]), ([0.1], []), ([np.nan], [0.1])])
def test_unusable_scores_are_refused(genuine, impostor) -> None:
    with pytest.raises(ValueError, match="scores"):
        error_rates(genuine, impostor)


def people(seed: int, count: int = 30) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images of people who scatter unevenly, other images of them, and who is who."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((count, 12)), 6, axis=0)
    scatter = np.repeat(rng.uniform(0.5, 1.5, count), 6)[:, None]
    images = [centres + scatter * rng.standard_normal(centres.shape) for _ in range(2)]
    return images[0], images[1], [f"ID_{i:03}" for i in range(count) for _ in range(6)]


def rounded_scores(seed: int, n: int, m: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    genuine, impostor = rng.normal(0.4, 0.2, n), rng.normal(0.0, 0.15, m)
    return tuple(np.round(part, decimals).clip(-1, 1) for part in (genuine, impostor))


def condensed(
    genuine: np.ndarray, impostor: np.ndarray
) -> tuple[Comparison, tuple[np.ndarray, np.ndarray]]:
    """A condensed comparison of probes with one image that has these cosines, as single ones."""
    cosines = np.concatenate([genuine, impostor])
    probes = np.column_stack([cosines, np.sqrt(1.0 - np.square(cosines))])
    names = ["anybody"] * len(genuine) + [f"other {i % 7}" for i in range(len(impostor))]
    unit = (probes / np.linalg.norm(probes, axis=1, keepdims=True)).astype(np.float32)[:, 0]
    comparison = compare(probes, names, np.array([[1.0, 0.0]]), ["anybody"], keep=0)
    return comparison, (unit[: len(genuine)], unit[len(genuine) :])


EXACT = ("n_genuine", "n_impostor", "eer", "fmr100", "fmr1000")


@pytest.mark.parametrize("decimals", [9, 3, 1], ids=["distinct", "ties", "many ties"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 40), (40, 3), (500, 800), (2000, 90)])
@pytest.mark.parametrize(("levels", "fine"), [(16, 1), (64, 8), (512, 64)])
def test_condensed_rates_are_those_of_all_scores(
    n: int, m: int, decimals: int, levels: int, fine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"LEVELS": levels, "FINE": fine, "STEPS": 2**22 // levels, "AROUND": 0}
    for name, value in {**sizes, "OPERATING_POINTS": POINTS, "BLOCK_ROWS": 100}.items():
        monkeypatch.setattr(pairs, name, value)
    for seed in range(3):
        comparison, scores = condensed(*rounded_scores(seed, n, m, decimals))
        found, expected = vars(comparison_error_rates(comparison)), vars(error_rates(*scores))
        assert {name: found[name] for name in EXACT} == {name: expected[name] for name in EXACT}
        for name in ("impostor_mean", "impostor_sd", "genuine_mean", "genuine_sd"):
            assert found[name] == pytest.approx(expected[name], abs=1e-7)
        curve = verification._Sorted.of(comparison).curve()
        for fmr in POINTS.values():
            assert fnmr_at_fmr(curve, fmr) == fnmr_at_fmr(error_curve(*scores), fmr), fmr


POINTS = {str(fmr): fmr for fmr in (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1 / 3, 0.5)}


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [
        ([0.6, 0.7, 0.8], [-0.1, 0.0, 0.2]),  # separable
        ([-0.1, 0.0, 0.1], [0.6, 0.7, 0.8]),  # reversed
        ([0.5] * 9, [0.5] * 7),  # one value
        ([0.5], [0.1, 0.5, 0.9]),
        ([1.0, 1.0], [-1.0, 1.0]),  # at the ends of the range
    ],
)
def test_condensed_one_sided_and_constant_sets(genuine, impostor) -> None:
    comparison, scores = condensed(np.array(genuine), np.array(impostor))
    found, expected = comparison_error_rates(comparison), error_rates(*scores)
    assert (found.eer, found.fmr100) == (expected.eer, expected.fmr100)


def test_repeated_scores_take_no_memory() -> None:
    comparison, _ = condensed(*rounded_scores(4, 900, 9000, 1))
    assert len(comparison.impostor.scores) < 9000 / 50
    assert comparison.impostor.count.sum() == 9000


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("groups", [30, 10])
def test_many_pairs_get_the_rates_and_intervals_of_all_scores(
    within: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against leaving out each group's images and computing everything anew."""
    for name, value in {"GROUPS": groups, "BLOCK_ROWS": 50, "BLOCK_COLUMNS": 70}.items():
        monkeypatch.setattr(pairs, name, value)
    monkeypatch.setattr(verification, "MAX_PAIRS", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rows, others, names = people(0)
    gallery = () if within else (others, names)
    found = identity_error_rates(rows, names, *gallery)
    listed = compare(rows, names, *gallery)
    whole = error_rates(listed.genuine.scores, listed.impostor.scores)
    without = []
    for group in range(groups):
        kept = np.arange(len(names)) // 6 * groups // 30 != group
        left = [name for name, stays in zip(names, kept, strict=True) if stays]
        rest = compare(rows[kept], left, *(() if within else (others[kept], left)))
        without.append(error_rates(rest.genuine.scores, rest.impostor.scores))
    eer = error_rate_interval(
        whole.eer, np.array([rates.eer for rates in without]), 30, whole.n_genuine
    )
    fdr = jackknife_interval(whole.fdr, [np.array([rates.fdr for rates in without])], ROOT)
    assert [getattr(found, name) for name in EXACT[:2]] == [whole.n_genuine, whole.n_impostor]
    steps = 2.0 / whole.n_genuine  # single precision may swap two scores that are nearly equal
    for name in EXACT[2:]:
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=steps)
    for name in ("impostor_mean", "impostor_sd", "genuine_mean", "genuine_sd", "fdr", "d_prime"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-5, abs=1e-6)
    assert (found.eer_low, found.eer_high) == pytest.approx((eer.low, eer.high), rel=5e-3)
    assert (found.fdr_low, found.fdr_high) == pytest.approx((fdr.low, fdr.high), rel=1e-5)


def test_groups_do_not_hide_how_many_people_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "GROUPS", 10)
    monkeypatch.setattr(verification, "MAX_PAIRS", 0)
    names = [f"ID_{i:03}" for i in range(30) for _ in range(3)]
    found = identity_error_rates(np.repeat(np.eye(30), 3, axis=0), names)  # nobody is confused
    assert (found.eer, found.eer_low) == (0.0, 0.0)
    assert found.eer_high == pytest.approx(stats.binomtest(0, 30).proportion_ci().high)


def test_replicates_of_condensed_and_of_listed_pairs_agree() -> None:
    rows, _, names = people(1)
    counts = draw_counts(30, 20, np.random.default_rng(0))
    one = bootstrap_verification(compare(rows, names), counts)
    two = bootstrap_verification(compare(rows, names, keep=0), counts)
    np.testing.assert_allclose(two.eer, one.eer, atol=3e-3)
    np.testing.assert_allclose(two.fdr, one.fdr, rtol=1e-5)
    np.testing.assert_allclose(two.genuine_mean, one.genuine_mean, rtol=1e-5)


def test_two_people_have_rates_but_no_interval() -> None:
    rows, _, names = people(2, count=2)
    found = identity_error_rates(rows, names)
    listed = compare(rows, names)
    assert found.eer == error_rates(listed.genuine.scores, listed.impostor.scores).eer
    assert np.isnan([found.eer_low, found.eer_high, found.fdr_low, found.fdr_high]).all()
