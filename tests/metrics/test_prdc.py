from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline_steps.metrics import prdc
from pipeline_steps.metrics.arrays import Undefined
from pipeline_steps.metrics.prdc import authenticity_percentage, precision_recall


def naive(real: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    """The four definitions as loops over points."""

    def radius(rows: np.ndarray, i: int) -> float:
        others = [np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i]
        return float(sorted(others)[k - 1])

    def distance(a, b) -> float:
        return float(np.linalg.norm(a - b))

    real_radii = [radius(real, i) for i in range(len(real))]
    synthetic_radii = [radius(synthetic, i) for i in range(len(synthetic))]
    around = [
        sum(distance(r, s) <= q for r, q in zip(real, real_radii, strict=True)) for s in synthetic
    ]
    recalled = [
        any(distance(r, s) <= q for s, q in zip(synthetic, synthetic_radii, strict=True))
        for r in real
    ]
    covered = [
        any(distance(r, s) <= q for s in synthetic) for r, q in zip(real, real_radii, strict=True)
    ]
    return {
        "precision": float(np.mean([count > 0 for count in around])),
        "recall": float(np.mean(recalled)),
        "density": sum(around) / (k * len(synthetic)),
        "coverage": float(np.mean(covered)),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definitions_written_out(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(k)
    real = rng.standard_normal((45, 4)) + 100.0
    synthetic = rng.standard_normal((38, 4)) * 0.8 + 100.6
    expected = naive(real, synthetic, k)
    assert precision_recall(real, synthetic, k=k) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(prdc, "TILE", 7)
    assert precision_recall(real, synthetic, k=k) == pytest.approx(expected, rel=1e-12)


def test_roles_of_the_two_sets_are_not_interchangeable() -> None:
    # Real points on a line; synthetic ones crowd around one of them.
    real = np.arange(10.0)[:, None]
    synthetic = np.array([[4.0], [4.01], [4.02], [4.03], [4.04]])
    result = precision_recall(real, synthetic, k=1)
    assert result["precision"] == 1.0
    assert result["recall"] == 0.1
    swapped = precision_recall(synthetic, real, k=1)
    assert swapped["precision"] == result["recall"]
    assert swapped["recall"] == result["precision"]


def test_copies_are_inside_and_distant_points_outside() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((30, 6))
    copied = precision_recall(real, real.copy())
    assert copied["precision"] == copied["recall"] == copied["coverage"] == 1.0
    assert set(precision_recall(real, real + 1e4).values()) == {0.0}


def test_too_few_rows_for_k_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 rows"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)), k=3)
    with pytest.raises(ValueError, match="k must be"):
        precision_recall(np.ones((9, 2)), np.ones((9, 2)), k=0)


def every_distance(real: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    """The four definitions with whole matrices of float64 differences."""
    within = [np.sort(cdist(rows, rows), axis=1)[:, k] for rows in (real, synthetic)]
    across = cdist(real, synthetic)
    inside = across <= within[0][:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((across <= within[1]).any(axis=1).mean()),
        "density": float(inside.sum() / (k * len(synthetic))),
        "coverage": float(inside.any(axis=1).mean()),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_single_precision_changes_no_decision(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a lattice far from the origin very many distances are equal to a radius.
    monkeypatch.setattr(prdc, "TILE", 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rng = np.random.default_rng(0)
    real = (rng.integers(0, 4, (300, 6)) + 1000).astype(dtype)
    synthetic = (rng.integers(0, 4, (260, 6)) + 1001).astype(dtype)
    assert precision_recall(real, synthetic) == every_distance(real, synthetic, 3)


def test_without_the_second_look_single_precision_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 400)) * 1e-3
    real[0] += 1e3  # far away, so that small distances lose their digits
    synthetic = real[1:] + 1e-3 * rng.standard_normal((299, 400))
    expected = every_distance(real, synthetic, 3)
    assert precision_recall(real, synthetic) == expected
    monkeypatch.setattr(prdc, "UNIT", 0.0)
    assert precision_recall(real, synthetic) != expected


@pytest.mark.parametrize("k", [3, 5])
def test_equals_the_prdc_package_and_torch_fidelity(k: int) -> None:
    import torch
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = np.random.default_rng(k)
    real = rng.standard_normal((400, 8)).astype(np.float32)
    synthetic = (rng.standard_normal((350, 8)) * 0.8 + 0.3).astype(np.float32)
    found = precision_recall(real, synthetic, k=k)
    assert found == pytest.approx(compute_prdc(real, synthetic, k), rel=1e-12)
    # Its first set is the generated one, since version 0.4.
    theirs = prc_features_to_metric(
        torch.from_numpy(synthetic), torch.from_numpy(real), prc_neighborhood=k, verbose=False
    )
    assert found["precision"] == pytest.approx(theirs["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], rel=1e-6)


def literal_authenticity(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Alaa et al., Section 3.3, with all distances at once."""
    within = cdist(real, real)
    np.fill_diagonal(within, np.inf)
    across = cdist(real, synthetic)
    nearest = across.argmin(axis=0)
    authentic = within.min(axis=1)[nearest] < across.min(axis=0)
    return 100.0 * authentic.mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_authenticity_equals_the_definition(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prdc, "TILE", 30)
    rng = np.random.default_rng(0)
    real = (rng.standard_normal((100, 5)) + 50).astype(dtype)
    near = real[:40] + 0.2 * rng.standard_normal((40, 5))
    synthetic = np.concatenate([near, rng.standard_normal((50, 5)) + 50]).astype(dtype)
    found = authenticity_percentage(real, synthetic)
    assert found == pytest.approx(literal_authenticity(real, synthetic), rel=1e-12)
    assert 20 < found < 90


def test_copies_are_not_authentic_and_far_images_are() -> None:
    real = np.random.default_rng(1).standard_normal((30, 6))
    assert authenticity_percentage(real, real[:10]) == 0.0
    assert authenticity_percentage(real, real + 1e3) == 100.0


def test_a_collapsed_reference_has_no_balls_and_a_collapsed_set_recalls_nothing() -> None:
    rng = np.random.default_rng(8)
    sound = rng.standard_normal((30, 16))
    for noise in (0.0, 1e-7):  # as another batch of the network leaves it
        collapsed = np.float32(sound[:1] * (1 + noise * rng.standard_normal((30, 16))))
        for number in (precision_recall, authenticity_percentage):
            with pytest.raises(Undefined, match="all real features are equal"):
                number(collapsed, collapsed)
        assert precision_recall(sound, collapsed + 5)["recall"] == 0.0
