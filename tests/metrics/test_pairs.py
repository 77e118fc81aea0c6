from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from pipeline_steps.metrics import pairs
from pipeline_steps.metrics.pairs import Comparison, compare

NAMES_A = ["a", "a", "b", "c", "c", "c"]
NAMES_B = ["b", "a", "a", "d"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ROWS", 4)
    monkeypatch.setattr(pairs, "BLOCK_COLUMNS", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


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
    result = compare(a, NAMES_A, b, NAMES_B)
    assert as_set(result, "genuine") == sorted(row for row in expected if row[0] == row[1])
    assert as_set(result, "impostor") == sorted(row for row in expected if row[0] != row[1])


def test_within_a_set_each_unordered_pair_counts_once_and_none_with_itself() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((6, 5))
    expected = [
        (NAMES_A[i], NAMES_A[j], round(cosine(a[i], a[j]), 9)) for i, j in combinations(range(6), 2)
    ]
    result = compare(a, NAMES_A)
    assert as_set(result, "genuine") == sorted(row for row in expected if row[0] == row[1])
    assert as_set(result, "impostor") == sorted(row for row in expected if row[0] != row[1])


def test_equal_impostors_are_a_seeded_draw_without_replacement() -> None:
    rng = np.random.default_rng(2)
    names = [name for name in "abcdefgh" for _ in range(6)]
    a = rng.standard_normal((48, 16))
    everything = compare(a, names)
    drawn = compare(a, names, impostors="equal", rng=np.random.default_rng(5), keep=10)
    again = compare(a, names, impostors="equal", rng=np.random.default_rng(5))
    other = compare(a, names, impostors="equal", rng=np.random.default_rng(6))
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
    result = compare(a, names, impostors="equal", rng=np.random.default_rng(0))
    assert (len(result.genuine.scores), len(result.impostor.scores)) == (6, 4)


def test_wrong_lengths_and_a_missing_generator_are_refused() -> None:
    a = np.ones((3, 2))
    with pytest.raises(ValueError, match="identity names"):
        compare(a, ["a", "b"])
    with pytest.raises(ValueError, match="identity names"):
        compare(a, ["a", "b", "b"], a)
    with pytest.raises(ValueError, match="random generator"):
        compare(a, ["a", "b", "b"], impostors="equal")


@pytest.mark.parametrize(("names", "kind"), [("abcd", "impostor"), ("aaaa", "genuine")])
def test_pairs_of_one_kind_are_condensed_without_the_other(names: str, kind: str) -> None:
    found = compare(np.eye(4), list(names), keep=0)
    pairs_of = {"genuine": found.genuine, "impostor": found.impostor}
    alone = pairs_of.pop(kind)
    assert alone.count is not None and alone.count.sum() == 6
    assert [len(other.scores) for other in pairs_of.values()] == [0]


@pytest.mark.parametrize("versus", [False, True])
def test_sets_of_the_same_people_are_condensed_alike_though_some_lost_an_image(
    versus: bool,
) -> None:
    rows, names = np.eye(6), list("aaabbb")
    other = (rows, names) if versus else ()
    most = 36 if versus else 15
    for kept in (6, 5):
        for keep, condensed in ((most, False), (most - 1, True)):
            found = compare(rows[:kept], names[:kept], *other, keep=keep)
            assert (found.groups is not None) is condensed


@pytest.mark.parametrize("versus", [False, True])
@pytest.mark.parametrize("groups", [40, 3])
def test_condensed_pairs_are_counted_once_each_with_their_sums(
    versus: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "GROUPS", groups)
    rng = np.random.default_rng(4)
    names = [f"ID_{i}" for i in rng.integers(0, 8, 37)]
    rows = rng.standard_normal((37, 5)).astype(np.float32)
    other = (rows[::2] + 0.5, [*names[::2][:-1], "ID_9"]) if versus else ()
    listed, condensed = compare(rows, names, *other), compare(rows, names, *other, keep=0)
    people, units = len(listed.identities), condensed.units
    assert units == min(groups, people)
    for kind in ("genuine", "impostor"):
        one, two = getattr(listed, kind), getattr(condensed, kind)
        codes = np.sort([one.first * units // people, one.second * units // people], axis=0)
        # Which side a group stands on says nothing.
        places = np.sort([two.first, two.second], axis=0)
        for pair in np.unique(codes, axis=1).T:
            scores = one.scores[(codes == pair[:, None]).all(axis=0)]
            here = (places == pair[:, None]).all(axis=0)
            assert two.count[here].sum() == len(scores)
            tables = {int(a * units + b) for a, b in (pair, pair[::-1])}
            sums = two.sums[:, list(tables)].sum(axis=1)
            assert sums == pytest.approx([scores.sum(), np.square(scores).sum()], abs=1e-5)
            # Rounding moves a score by the width of its bins.
            spread = np.sort(np.repeat(two.scores[here], two.count[here])) - np.sort(scores)
            assert np.abs(spread).max() < 2.1 / pairs.LEVELS
