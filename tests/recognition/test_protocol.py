"""The ten-fold verification protocol against an independent implementation."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import model_selection, preprocessing

from pipeline_steps.metrics.intervals import wilson_interval
from pipeline_steps.recognition.protocol import (
    accuracy_interval,
    average_with_interval,
    pair_distances,
    unit_rows,
    verify_pairs,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import accuracy_coverage


def naive_accuracy(distances: np.ndarray, same: np.ndarray, n_folds: int) -> tuple[float, float]:
    """The protocol in plain loops, fold sizes as scikit-learn's unshuffled KFold has them."""
    n = len(distances)
    sizes = [n // n_folds + (1 if fold < n % n_folds else 0) for fold in range(n_folds)]
    accuracies = []
    start = 0
    for size in sizes:
        test = range(start, start + size)
        train = [i for i in range(n) if i not in test]
        start += size
        best_threshold, best_hits = 0.0, -1
        for step in range(400):
            threshold = step * 0.01
            hits = sum((distances[i] < threshold) == same[i] for i in train)
            if hits > best_hits:
                best_threshold, best_hits = threshold, hits
        accuracies.append(sum((distances[i] < best_threshold) == same[i] for i in test) / size)
    mean = sum(accuracies) / n_folds
    return mean, math.sqrt(sum((a - mean) ** 2 for a in accuracies) / n_folds)


@pytest.mark.parametrize("n", [60, 63, 40])
def test_accuracy_equals_a_naive_implementation(n: int) -> None:
    rng = np.random.default_rng(n)
    same = np.arange(n) % 2 == 0
    distances = np.where(same, rng.normal(1.1, 0.5, n), rng.normal(1.9, 0.5, n)).clip(0, 4)
    result = verify_pairs(distances, same)
    accuracy, sd = naive_accuracy(distances, same, 10)
    assert result.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert result.accuracy_sd == pytest.approx(sd, abs=1e-12)
    assert result.n_pairs == n
    assert result.low < accuracy < result.high


def insightface_accuracies(raw: np.ndarray, mirrored: np.ndarray, same: list[bool]) -> list[float]:
    """InsightFace's verification step by step: accuracy of each of the ten folds."""
    embeddings = preprocessing.normalize(raw + mirrored)
    difference = np.subtract(embeddings[0::2], embeddings[1::2])
    distances = np.sum(np.square(difference), 1)
    actual = np.asarray(same)
    thresholds = np.arange(0, 4, 0.01)

    def accuracy(threshold: float, rows: np.ndarray) -> float:
        predicted = np.less(distances[rows], threshold)
        true_positives = np.sum(np.logical_and(predicted, actual[rows]))
        true_negatives = np.sum(np.logical_and(~predicted, ~actual[rows]))
        return float(true_positives + true_negatives) / len(rows)

    found = []
    folds = model_selection.KFold(n_splits=10, shuffle=False)
    for train, test in folds.split(np.arange(len(same))):
        best = np.argmax([accuracy(threshold, train) for threshold in thresholds])
        found.append(accuracy(thresholds[best], test))
    return found


@pytest.mark.parametrize("n", [100, 203])
def test_raw_embeddings_give_insightfaces_mean_and_deviation(n: int) -> None:
    rng = np.random.default_rng(n)
    people = rng.normal(size=(n, 2, 32))
    same = [bool(flag) for flag in rng.random(n) < 0.5]
    people[same, 1] = people[same, 0]
    images = (people + rng.normal(0, 1.3, people.shape)).reshape(-1, 32) * 5
    raw, mirrored = (images + rng.normal(0, 1, images.shape) for _ in range(2))
    expected = insightface_accuracies(raw, mirrored, same)
    found = verify_pairs(pair_distances(unit_rows(raw + mirrored)), np.array(same))
    assert 0.55 < np.mean(expected) < 0.99
    assert found.accuracy == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.accuracy_sd == pytest.approx(np.std(expected), abs=1e-12)


def test_separable_pairs_are_all_right_and_unrelated_ones_are_chance() -> None:
    same = np.tile([True, False], 500)
    assert verify_pairs(np.where(same, 0.5, 2.0), same).accuracy == 1.0
    noise = np.random.default_rng(0).uniform(0, 4, 1000)
    assert verify_pairs(noise, same).accuracy == pytest.approx(0.5, abs=0.06)


def test_the_threshold_comes_from_the_other_folds() -> None:
    """One fold lives on another scale: the others' threshold must fail there."""
    same = np.tile([True, False], 50)
    distances = np.where(same, 0.5, 2.0)
    distances[:10] = np.where(same[:10], 2.5, 3.5)
    result = verify_pairs(distances, same)
    assert result.accuracy == pytest.approx(0.95)


def test_pair_distance_is_two_minus_two_cosines() -> None:
    rng = np.random.default_rng(3)
    raw, mirrored = rng.normal(size=(10, 16)), rng.normal(size=(10, 16))
    unit = unit_rows(raw + mirrored)
    total = raw + mirrored
    cosines = [
        total[i] @ total[i + 1] / np.linalg.norm(total[i]) / np.linalg.norm(total[i + 1])
        for i in range(0, 10, 2)
    ]
    np.testing.assert_allclose(pair_distances(unit), 2 - 2 * np.array(cosines), rtol=1e-12)


def test_embeddings_without_direction_are_an_error() -> None:
    ones = np.ones((2, 4))
    with pytest.raises(ValueError, match="zero or not finite"):
        unit_rows(0 * ones)
    with pytest.raises(ValueError, match="zero or not finite"):
        unit_rows(ones * np.nan)


def test_misfitting_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="one flag per distance"):
        verify_pairs(np.zeros(20), np.zeros(10, dtype=bool))
    with pytest.raises(ValueError, match="at least 10 pairs"):
        verify_pairs(np.zeros(9), np.zeros(9, dtype=bool))


def test_even_folds_give_wilsons_interval_with_students_quantile() -> None:
    folds = np.full(10, 0.9)
    quantile = stats.t.ppf(0.975, 9)
    assert accuracy_interval(folds, 600) == pytest.approx(wilson_interval(0.9, 600, quantile))
    assert accuracy_interval(np.ones(10), 600) == pytest.approx(wilson_interval(1.0, 600, quantile))


def test_folds_that_differ_more_than_independent_pairs_count_as_fewer_pairs() -> None:
    folds = np.array([0.8, 1.0] * 5)
    # The standard error of the folds' mean, and that of as many independent pairs.
    error = stats.sem(folds)
    effective = 0.9 * 0.1 / error**2
    assert effective < 100
    expected = wilson_interval(0.9, effective, stats.t.ppf(0.975, 9))
    assert accuracy_interval(folds, 600) == pytest.approx(expected)
    # Two pairs a fold spread more than that by themselves.
    assert accuracy_interval(folds, 20) == pytest.approx(
        wilson_interval(0.9, 20, stats.t.ppf(0.975, 9))
    )


def test_the_interval_covers_an_accuracy_whose_pairs_err_together() -> None:
    """People of six pairs each, all right or all wrong: independent pairs would cover 58 %."""
    rng = np.random.default_rng(5)
    covered = plain = 0
    for _ in range(2000):
        folds = rng.binomial(10, 0.9, 10) / 10
        low, high = accuracy_interval(folds, 600)
        covered += low <= 0.9 <= high
        low, high = wilson_interval(folds.mean(), 600)
        plain += low <= 0.9 <= high
    assert 0.92 <= covered / 2000 <= 0.98
    assert plain / 2000 < 0.7


@pytest.mark.parametrize("name", ["scattered", "uneven_folds"])
def test_the_interval_covers_the_truth(name: str) -> None:
    # Small counts here; the figures of the documentation come from the benchmark itself.
    kind = accuracy_coverage.KINDS[name]
    truth, (plain, _, held) = accuracy_coverage.coverages(kind, 600, 0.9, draws=400)
    assert truth == pytest.approx(0.9, abs=0.01)
    assert 0.92 <= held <= 0.985
    assert plain < held


def test_the_benchmarks_protocol_is_the_one_in_use() -> None:
    rng = np.random.default_rng(4)
    same = np.tile([True, False], 100)
    distances = np.where(same, rng.normal(1.1, 0.4, 200), rng.normal(1.7, 0.4, 200)).clip(0, 4)
    folds = accuracy_coverage.fold_accuracies(distances[None], same)[0]
    result = verify_pairs(distances, same)
    assert folds.mean() == pytest.approx(result.accuracy, abs=1e-12)
    assert folds.std() == pytest.approx(result.accuracy_sd, abs=1e-12)


def test_the_average_of_one_benchmark_has_its_interval() -> None:
    assert average_with_interval([0.9], [0.85], [0.93]) == pytest.approx((0.9, 0.85, 0.93))


def test_the_interval_of_the_average_covers_the_truth() -> None:
    """Simulated benchmarks of known accuracy: 95 % intervals cover it in 95 % of 3 000 trials."""
    truth, sizes = np.array([0.55, 0.7, 0.9, 0.97, 0.8]), [100, 200, 100, 200, 100]
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(3000):
        measured = [rng.binomial(n, p) / n for p, n in zip(truth, sizes, strict=True)]
        limits = [wilson_interval(a, n) for a, n in zip(measured, sizes, strict=True)]
        _, low, high = average_with_interval(measured, *zip(*limits, strict=True))
        covered += low <= truth.mean() <= high
    assert 0.94 <= covered / 3000 <= 0.96


def test_no_benchmark_has_no_average() -> None:
    with pytest.raises(ValueError, match="at least one benchmark"):
        average_with_interval([], [], [])
