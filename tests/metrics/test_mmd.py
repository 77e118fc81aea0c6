from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from pipeline_steps.metrics import mmd
from pipeline_steps.metrics.mmd import cmmd, kernel_distance


def naive(x: np.ndarray, y: np.ndarray, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """Eq. 3 of Jayasumana et al. written out, with exact sums."""
    x = [row / np.linalg.norm(row) for row in x]
    y = [row / np.linalg.norm(row) for row in y]

    def mean(a, b) -> float:
        kernel = [math.exp(-sum((p - q) ** 2) / (2 * sigma**2)) for p in a for q in b]
        return math.fsum(kernel) / len(kernel)

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_equals_the_definition_written_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 7)), rng.standard_normal((22, 7)) + 0.4
    assert cmmd(x, y) == pytest.approx(naive(x, y), rel=1e-8)
    assert cmmd(x, y, sigma=0.7, scale=1.0) == pytest.approx(naive(x, y, 0.7, 1.0), rel=1e-10)


def test_two_single_opposite_rows_have_the_closed_form() -> None:
    # |a - b|^2 = 4, so MMD^2 = 2 - 2 exp(-4 / 200).
    expected = 1000 * (2 - 2 * math.exp(-0.02))
    assert cmmd(np.array([[3.0, 0.0]]), np.array([[-5.0, 0.0]])) == pytest.approx(expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 5)), rng.standard_normal((41, 5)) + 0.2
    whole = cmmd(x, y)
    monkeypatch.setattr(mmd, "BLOCK_ROWS", 7)
    assert cmmd(x, y) == pytest.approx(whole, rel=1e-9)


def test_length_of_rows_does_not_matter_and_equal_sets_are_at_zero() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 5)) + 0.2
    assert cmmd(x * 7, y * rng.uniform(1, 9, (20, 1))) == pytest.approx(cmmd(x, y), rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0.0, abs=1e-10)


def test_a_zero_row_is_refused() -> None:
    with pytest.raises(ValueError, match="zero row"):
        cmmd(np.zeros((2, 3)), np.ones((2, 3)))


def test_memory_is_that_of_blocks_whatever_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmd, "BLOCK_ROWS", 128)
    rng = np.random.default_rng(3)

    def peak(n: int) -> int:
        x, y = rng.standard_normal((2, n, 8), dtype=np.float32)
        tracemalloc.start()
        cmmd(x, y)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(200)
    # A whole matrix of kernel values would take 32 MB; a block takes 0.13.
    assert peak(2000) < 1e6


def sets(n: int, m: int, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)) + 0.2, rng.standard_normal((m, d)) * 1.3


def literal_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimator written out over pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1.0) ** 3

    def within(rows: np.ndarray) -> float:
        n = len(rows)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / (n * (n - 1))

    return within(x) + within(y) - 2.0 * float(np.mean([kernel(a, b) for a in x for b in y]))


def fidelity(x: np.ndarray, y: np.ndarray, size: int) -> dict[str, float]:
    return kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=3,
        kid_subset_size=size,
        rng_seed=0,
        verbose=False,
    )


def test_whole_sets_equal_torch_fidelity_and_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = sets(60, 60)
    found = kernel_distance(x, y, subset_size=60, rng=np.random.default_rng(0))
    assert found.mean == pytest.approx(literal_distance(x, y), rel=1e-10)
    theirs = fidelity(x, y, 60)["kernel_inception_distance_mean"]
    assert found.mean == pytest.approx(theirs, rel=1e-6)
    assert np.isnan(found.sd)
    monkeypatch.setattr(mmd, "BLOCK_ROWS", 7)
    blocked = kernel_distance(x, y, subset_size=60, rng=np.random.default_rng(0))
    assert blocked.mean == pytest.approx(found.mean, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 45), (400, 90)], ids=["shared kernel", "one by one"])
def test_subsets_are_those_that_the_generator_draws(n: int, m: int) -> None:
    x, y = sets(n, m)
    found = kernel_distance(x, y, subsets=5, subset_size=20, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    values = [
        literal_distance(
            x[rng.choice(n, size=20, replace=False)], y[rng.choice(m, size=20, replace=False)]
        )
        for _ in range(5)
    ]
    assert found.mean == pytest.approx(np.mean(values), rel=1e-10)
    assert found.sd == pytest.approx(np.std(values), rel=1e-10)


def test_is_unbiased_for_equal_distributions() -> None:
    rng = np.random.default_rng(1)
    values = [
        kernel_distance(
            rng.standard_normal((30, 4)), rng.standard_normal((30, 4)), subset_size=30, rng=rng
        ).mean
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_subsets_without_rows_are_refused() -> None:
    x, y = sets(5, 5)
    with pytest.raises(ValueError, match="no mean over 0 subsets"):
        kernel_distance(x, y, subsets=0, rng=np.random.default_rng(0))
