from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline_steps.metrics.intervals import (
    bootstrap_verification,
    draw_counts,
    percentile_interval,
    wilson_interval,
)
from pipeline_steps.metrics.pairs import compare_between, compare_within
from pipeline_steps.metrics.verification import error_rates


def embeddings(rng: np.random.Generator, identities: int, images: int, noise: float = 1.0):
    centres = np.repeat(rng.standard_normal((identities, 8)), images, axis=0)
    names = [f"ID_{i}" for i in range(identities) for _ in range(images)]
    return centres + noise * rng.standard_normal(centres.shape), names


@pytest.mark.parametrize("decimals", [12, 1], ids=["distinct", "ties"])
def test_a_replicate_equals_the_error_rates_of_repeated_scores(decimals: int) -> None:
    rng = np.random.default_rng(0)
    synthetic, names = embeddings(rng, 6, 4)
    real, real_names = embeddings(rng, 6, 3)
    result = compare_between(synthetic, names, real, real_names)
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
        return compare_within(rows, names)

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
