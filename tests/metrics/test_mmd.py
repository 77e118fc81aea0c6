from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from pipeline_steps.metrics import mmd
from pipeline_steps.metrics.mmd import cmmd


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
