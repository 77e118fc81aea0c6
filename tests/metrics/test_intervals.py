from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline_steps.metrics.frechet import frechet_distance, frechet_interval
from pipeline_steps.metrics.intervals import (
    Interval,
    Scale,
    draw_counts,
    error_rate_interval,
    jackknife_interval,
    leave_out,
    percentile_interval,
    ratio_interval,
    wilson_interval,
)
from pipeline_steps.metrics.pairs import compare
from pipeline_steps.metrics.verification import (
    bootstrap_verification,
    comparison_error_rates,
    error_rates,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import interval_coverage

LINEAR = Scale(lambda x: x, lambda x: x)


def test_the_interval_of_a_mean_is_students() -> None:
    # Flat tails, so that no degree of freedom is lost to them.
    values = np.random.default_rng(0).uniform(size=15)
    without = (values.sum() - values) / 14
    interval = jackknife_interval(values.mean(), [without], LINEAR)
    expected = stats.t.interval(0.95, 14, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)


def test_a_difference_of_two_means_is_welchs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=12), rng.uniform(size=25) * 2
    samples = [(a.sum() - a) / 11 - b.mean(), a.mean() - (b.sum() - b) / 24]
    interval = jackknife_interval(a.mean() - b.mean(), samples, LINEAR)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_one_person_who_carries_all_widens_the_interval() -> None:
    values = np.zeros(20)
    values[0] = 1.0
    without = (values.sum() - values) / 19
    interval = jackknife_interval(0.05, [without], LINEAR)
    plain = stats.t.interval(0.95, 19, 0.05, stats.sem(values))
    assert interval.high - interval.low > 1.5 * (plain[1] - plain[0])


def test_many_people_are_left_out_in_even_groups() -> None:
    kept = leave_out(105, 10, np.random.default_rng(2))
    assert kept.shape == (10, 105)
    assert ((~kept).sum(axis=0) == 1).all()
    assert set((~kept).sum(axis=1)) <= {10, 11}
    np.testing.assert_array_equal(
        leave_out(4, 10, np.random.default_rng(2)), ~np.eye(4, dtype=bool)
    )


def test_no_error_among_few_people_is_no_proof() -> None:
    interval = error_rate_interval(0.0, np.zeros(8), 8, 100)
    # Clopper and Pearson for 0 of 8.
    assert interval.high == pytest.approx(stats.binomtest(0, 8).proportion_ci().high)
    assert interval.low == 0.0


def test_intervals_hold_the_estimates_and_stay_in_range() -> None:
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.standard_normal((10, 8)), 5, axis=0)
    rows = centres + 0.7 * rng.standard_normal(centres.shape)
    comparison = compare(rows, [f"ID_{i}" for i in range(10) for _ in range(5)])
    rates = comparison_error_rates(comparison)
    assert 0 <= rates.eer_low < rates.eer < rates.eer_high <= 1
    assert 0 <= rates.fdr_low < rates.fdr < rates.fdr_high


def drifting(seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    real = np.repeat(rng.standard_normal((10, 8)), 8, axis=0) + 0.3 * rng.standard_normal((80, 8))
    # Each identity drifts by itself, as a fine-tuned model does.
    drift = np.repeat(rng.standard_normal((10, 8)), 8, axis=0)
    return real, real + drift, [f"ID_{i}" for i in range(10) for _ in range(8)]


def test_frechet_interval_is_wider_for_images_of_few_people() -> None:
    real, synthetic, names = drifting(4)

    def interval(labels: list[str], groups: int = 100):
        return frechet_interval(
            real, synthetic, labels, labels, groups=groups, rng=np.random.default_rng(0)
        )

    by_identity = interval(names)
    assert by_identity.low < frechet_distance(real, synthetic) < by_identity.high
    by_image = interval([str(i) for i in range(80)])
    assert by_identity.high - by_identity.low > 1.3 * (by_image.high - by_image.low)
    grouped = interval([str(i) for i in range(80)], groups=16)
    width = by_image.high - by_image.low
    assert 0.4 * width < grouped.high - grouped.low < 2.5 * width


def test_frechet_interval_of_sets_without_common_people() -> None:
    real, synthetic, names = drifting(5)
    others = [f"other {name}" for name in names]
    interval = frechet_interval(
        real, synthetic, names, others, groups=20, rng=np.random.default_rng(0)
    )
    assert interval.low < frechet_distance(real, synthetic) < interval.high


def test_no_groups_or_one_person_give_no_interval() -> None:
    real, synthetic, names = drifting(6)
    rng = np.random.default_rng(0)
    none = frechet_interval(real, synthetic, names, names, groups=0, rng=rng)
    one = frechet_interval(real, synthetic, ["a"] * 80, ["a"] * 80, groups=9, rng=rng)
    assert np.isnan([none.low, none.high, one.low, one.high]).all()
    with pytest.raises(ValueError, match="one identity name per feature row"):
        frechet_interval(real, synthetic, names[1:], names, groups=9, rng=rng)


@pytest.mark.parametrize("measure", ["eer", "fdr", "fd"])
def test_intervals_cover_the_truth(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small counts here; the figures of the documentation come from the benchmark itself.
    monkeypatch.setattr(interval_coverage, "POPULATION", 500)
    case = interval_coverage.QUICK[measure]
    covered, trials = interval_coverage.coverage(case, trials=120, seed=0)
    assert trials == 120
    assert 0.89 <= covered / trials <= 1.0


def test_people_who_err_alike_give_wilsons_interval_of_all_pairs() -> None:
    interval = error_rate_interval(0.1, np.full(20, 0.1), 20, 120)
    expected = stats.binomtest(12, 120).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_people_who_err_all_or_nothing_count_as_one_pair_each() -> None:
    # 6 of 40 people fail in all of their 200 pairs: the mean of 40 zeros and ones.
    failed = np.repeat([1.0, 0.0], [6, 34])
    without = (failed.sum() - failed) / 39
    interval = error_rate_interval(0.15, without, 40, 8000)
    # The jackknife's variance is that of a sample, with n - 1.
    centre, n, z = 0.15, 39, stats.t.ppf(0.975, 39)
    limits = [
        (centre + z * z / (2 * n) + sign * z * np.sqrt(centre * 0.85 / n + (z / (2 * n)) ** 2))
        / (1 + z * z / n)
        for sign in (-1, 1)
    ]
    assert (interval.low, interval.high) == pytest.approx(limits, rel=1e-9)


def test_many_pairs_of_few_people_are_not_many_trials() -> None:
    # One of eight carries all errors, each of 210 pairs with eight others alike.
    without = np.array([0.0] + [0.005 * 8 / 7] * 7)
    interval = error_rate_interval(0.005, without, 8, 1680)
    assert interval.low < 0.005
    few = stats.binomtest(0, 64).proportion_ci(method="wilson").high
    assert interval.high > few  # 8 pairs a person, all of them right, leave at least this open
    assert interval.high < 0.1


def test_of_frequent_errors_the_jackknife_alone_tells() -> None:
    rates = 0.3 + 0.05 * np.array([-1, 1, -1, 1, -1, 1, -1, 1])  # eight people, much alike
    without = (rates.sum() - rates) / 7
    interval = error_rate_interval(0.3, without, 8, 100_000)
    student = stats.t.interval(0.95, 7, 0.3, stats.sem(rates))
    assert (interval.low, interval.high) == pytest.approx(student, abs=3e-3)


def test_error_rates_at_the_end_of_the_scale() -> None:
    all_wrong = error_rate_interval(1.0, np.ones(8), 8, 100)
    assert 0.9 < all_wrong.low < all_wrong.high == 1.0
    undefined = error_rate_interval(0.1, np.array([0.1, np.nan]), 2, 10)
    assert np.isnan([undefined.low, undefined.high]).all()


def embeddings(rng: np.random.Generator, identities: int, images: int, noise: float = 1.0):
    centres = np.repeat(rng.standard_normal((identities, 8)), images, axis=0)
    names = [f"ID_{i}" for i in range(identities) for _ in range(images)]
    return centres + noise * rng.standard_normal(centres.shape), names


@pytest.mark.parametrize("decimals", [12, 1], ids=["distinct", "ties"])
def test_a_replicate_equals_the_error_rates_of_repeated_scores(decimals: int) -> None:
    rng = np.random.default_rng(0)
    synthetic, names = embeddings(rng, 6, 4)
    real, real_names = embeddings(rng, 6, 3)
    result = compare(synthetic, names, real, real_names)
    for pairs in (result.genuine, result.impostor):
        pairs.scores[:] = np.round(pairs.scores, decimals)
    counts = draw_counts(6, 30, rng)
    replicates = bootstrap_verification(result, counts)
    for index, weights in enumerate(counts):
        genuine = np.repeat(result.genuine.scores, weights[result.genuine.first])
        impostor = np.repeat(
            result.impostor.scores,
            weights[result.impostor.first] * weights[result.impostor.second],
        )
        expected = error_rates(genuine, impostor)
        assert replicates.eer[index] == pytest.approx(expected.eer, abs=1e-12)
        assert replicates.fdr[index] == pytest.approx(expected.fdr, rel=1e-9)
        assert replicates.genuine_mean[index] == pytest.approx(expected.genuine_mean, abs=1e-12)


def test_the_interval_of_a_mean_has_the_width_of_students() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(12)
    means = draw_counts(12, 20_000, rng) @ values / 12
    low, high = vars(percentile_interval(means, 12)).values()
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.08)


def test_the_interval_covers_the_true_mean_similarity() -> None:
    # Pairs of an identity share its own mean, so treating pairs as independent would cover rarely.
    rng = np.random.default_rng(2)
    covered, trials, n = 0, 300, 12
    counts = draw_counts(n, 300, rng)
    for _ in range(trials):
        identity_means = rng.normal(0.5, 0.1, n)
        scores = np.repeat(identity_means, 20) + rng.normal(0, 0.05, 20 * n)
        codes = np.repeat(np.arange(n), 20)
        weights = counts[:, codes]
        means = weights @ scores / weights.sum(axis=1)
        interval = percentile_interval(means, n)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.91 <= covered / trials <= 0.98


def test_verification_intervals_cover_the_population_values() -> None:
    def simulate(seed: int, identities: int):
        rng = np.random.default_rng(seed)
        rows, names = embeddings(rng, identities, 4, noise=0.6)
        return compare(rows, names)

    population = simulate(10_000, 400)
    truth = error_rates(population.genuine.scores, population.impostor.scores)
    covered = {"eer": 0, "fdr": 0, "genuine_mean": 0}
    trials, n = 120, 20
    counts = draw_counts(n, 200, np.random.default_rng(3))
    for seed in range(trials):
        replicates = bootstrap_verification(simulate(seed, n), counts)
        for name in covered:
            interval = percentile_interval(getattr(replicates, name), n)
            covered[name] += interval.low <= getattr(truth, name) <= interval.high
    for name, count in covered.items():
        assert 0.88 <= count / trials <= 1.0, (name, count / trials)


def test_one_identity_gives_no_interval() -> None:
    assert np.isnan(percentile_interval(np.arange(5.0), 1).low)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (5923, 6000)])
def test_wilson_interval_equals_scipys(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_ratio_leaves_out_one_just_where_the_difference_leaves_out_zero() -> None:
    rng = np.random.default_rng(4)
    found = set()
    for _ in range(300):
        numbers = np.append(rng.uniform(0.01, 0.9, 5), 0.0)
        low, one, high = np.sort(rng.choice(numbers, 3, replace=False))
        other_low, other, other_high = np.sort(rng.choice(numbers, 3, replace=False))
        limits = Interval(low, high), Interval(other_low, other_high)
        ratio = ratio_interval(one, limits[0], other, limits[1])
        beyond = one - other - np.hypot(one - low, other_high - other) > 0
        below = one - other + np.hypot(high - one, other - other_low) < 0
        assert (ratio.low > 1.0, ratio.high < 1.0) == (beyond, below)
        assert ratio.low <= one / other <= ratio.high
        found.add((beyond, below))
    assert len(found) == 3
    normal = ratio_interval(2.0, Interval(1.9, 2.1), 1.0, Interval(0.95, 1.05))
    assert (normal.low, normal.high) == pytest.approx((1.86, 2.15), abs=0.01)  # Fieller's


def test_the_ratio_to_nothing_has_a_lower_limit_alone() -> None:
    ratio = ratio_interval(0.2, Interval(0.1, 0.3), 0.0, Interval(0.0, 0.05))
    assert ratio.low > 1.0 and ratio.high == np.inf
    assert np.isnan(ratio_interval(0.0, Interval(0, 0.1), 0.0, Interval(0, 0.1)).low)
