from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from pipeline_steps.metrics import pairs
from pipeline_steps.metrics.pairs import Comparison, compare_between, compare_within

NAMES_A = ["a", "a", "b", "c", "c", "c"]
NAMES_B = ["b", "a", "a", "d"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ROWS", 4)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def as_set(comparison: Comparison, kind: str) -> list[tuple[str, str, float]]:
    chosen = getattr(comparison, kind)
    return sorted(
        (comparison.identities[i], comparison.identities[j], round(float(s), 9))
        for s, i, j in zip(chosen.scores, chosen.first, chosen.second, strict=True)
    )


def test_every_synthetic_image_meets_every_real_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 5)), rng.standard_normal((4, 5)) * 9
    expected = [
        (p, q, round(cosine(a[i], b[j]), 9))
        for (i, p), (j, q) in product(enumerate(NAMES_A), enumerate(NAMES_B))
    ]
    result = compare_between(a, NAMES_A, b, NAMES_B)
    assert as_set(result, "genuine") == sorted(row for row in expected if row[0] == row[1])
    assert as_set(result, "impostor") == sorted(row for row in expected if row[0] != row[1])


def test_within_a_set_each_unordered_pair_counts_once_and_none_with_itself() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((6, 5))
    expected = [
        (NAMES_A[i], NAMES_A[j], round(cosine(a[i], a[j]), 9)) for i, j in combinations(range(6), 2)
    ]
    result = compare_within(a, NAMES_A)
    assert as_set(result, "genuine") == sorted(row for row in expected if row[0] == row[1])
    assert as_set(result, "impostor") == sorted(row for row in expected if row[0] != row[1])


def test_equal_impostors_are_a_seeded_draw_without_replacement() -> None:
    rng = np.random.default_rng(2)
    names = [name for name in "abcdefgh" for _ in range(6)]
    a = rng.standard_normal((48, 16))
    everything = compare_within(a, names)
    drawn = compare_within(a, names, impostors="equal", rng=np.random.default_rng(5))
    again = compare_within(a, names, impostors="equal", rng=np.random.default_rng(5))
    other = compare_within(a, names, impostors="equal", rng=np.random.default_rng(6))
    assert len(drawn.impostor.scores) == len(drawn.genuine.scores) == 8 * 15
    assert np.array_equal(drawn.impostor.scores, again.impostor.scores)
    assert not np.array_equal(drawn.impostor.scores, other.impostor.scores)
    assert len(np.unique(drawn.impostor.scores)) == 120
    assert np.isin(drawn.impostor.scores, everything.impostor.scores).all()
    assert (drawn.impostor.first != drawn.impostor.second).all()
    # A draw over the whole triangle, not over its first rows.
    assert len(np.unique(drawn.impostor.first)) >= 6


def test_equal_impostors_fall_back_to_all_when_there_are_fewer() -> None:
    a = np.random.default_rng(3).standard_normal((5, 4))
    names = ["a", "a", "a", "a", "b"]
    result = compare_within(a, names, impostors="equal", rng=np.random.default_rng(0))
    assert (len(result.genuine.scores), len(result.impostor.scores)) == (6, 4)


def test_wrong_lengths_and_a_missing_generator_are_refused() -> None:
    a = np.ones((3, 2))
    with pytest.raises(ValueError, match="identity names"):
        compare_within(a, ["a", "b"])
    with pytest.raises(ValueError, match="random generator"):
        compare_within(a, ["a", "b", "b"], impostors="equal")
