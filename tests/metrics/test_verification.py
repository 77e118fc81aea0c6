from __future__ import annotations

import time

import numpy as np
import pytest
from pyeer.eer_info import get_eer_stats

from pipeline_steps.metrics.verification import (
    det_curve,
    error_curve,
    error_rates,
    fisher_discriminant_ratio,
    fnmr_at_fmr,
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


def test_the_det_curve_is_the_rule_at_each_rate() -> None:
    genuine, impostor = normal_scores(5, 300, 400, 2)
    curve = error_curve(genuine, impostor)
    fmrs = np.concatenate([[0.0], np.geomspace(1e-4, 1, 40)])
    expected = [fnmr_at_fmr(curve, fmr, "at most") for fmr in fmrs]
    np.testing.assert_array_equal(det_curve(curve, fmrs), expected)
    assert (np.diff(expected) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_equals_pyeer_on_one_sided_sets(seed: int) -> None:
    genuine, impostor = normal_scores(seed, 400, 500, 2)
    assert_equals_pyeer(genuine[genuine > 0.4], impostor)  # every genuine score is high
    assert_equals_pyeer(genuine, impostor[impostor < -0.1])
    assert_equals_pyeer(np.append(genuine[genuine < 0.3], 0.9), impostor[impostor > 0])


def test_equals_pyeer_on_many_scores() -> None:
    assert_equals_pyeer(*normal_scores(9, 20_000, 80_000, 3))


def test_fisher_ratio_of_constants() -> None:
    assert fisher_discriminant_ratio(0.5, 0.0, 0.5, 0.0) == 0.0
    assert fisher_discriminant_ratio(0.9, 0.0, 0.5, 0.0) == float("inf")


def test_a_million_scores_take_about_a_second() -> None:
    genuine, impostor = normal_scores(0, 500_000, 500_000)
    start = time.process_time()
    error_rates(genuine, impostor)
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(("genuine", "impostor"), [([], [0.1]), ([0.1], []), ([np.nan], [0.1])])
def test_unusable_scores_are_refused(genuine, impostor) -> None:
    with pytest.raises(ValueError, match="scores"):
        error_rates(genuine, impostor)
