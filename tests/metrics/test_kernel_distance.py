from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from pipeline_steps.metrics import kernel_distance as module
from pipeline_steps.metrics.kernel_distance import kernel_distance


def sets(n: int, m: int, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)) + 0.2, rng.standard_normal((m, d)) * 1.3


def literal(x: np.ndarray, y: np.ndarray) -> float:
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
    assert found.mean == pytest.approx(literal(x, y), rel=1e-10)
    theirs = fidelity(x, y, 60)["kernel_inception_distance_mean"]
    assert found.mean == pytest.approx(theirs, rel=1e-6)
    assert np.isnan(found.sd)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    blocked = kernel_distance(x, y, subset_size=60, rng=np.random.default_rng(0))
    assert blocked.mean == pytest.approx(found.mean, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 45), (400, 90)], ids=["shared kernel", "one by one"])
def test_subsets_are_those_that_the_generator_draws(n: int, m: int) -> None:
    x, y = sets(n, m)
    found = kernel_distance(x, y, subsets=5, subset_size=20, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    values = [
        literal(x[rng.choice(n, size=20, replace=False)], y[rng.choice(m, size=20, replace=False)])
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
