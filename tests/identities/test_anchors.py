"""Anchors: known optima of Tammes' problem, and the cone around an anchor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline_steps.identities.anchors import (
    largest_cosine,
    on_manifold,
    perturb,
    random_anchors,
    tammes,
)


def cosines(rows: np.ndarray) -> np.ndarray:
    """Of all pairs, by the definition."""
    return np.array([a @ b for a, b in itertools.combinations(rows, 2)])


@pytest.mark.parametrize(
    ("n", "d"), [(1, 2), (2, 2), (3, 2), (4, 3), (7, 12), (13, 12), (513, 512)]
)
def test_up_to_one_more_than_the_dimensions_anchors_are_a_regular_simplex(n: int, d: int) -> None:
    anchors = tammes(n, d)

    assert anchors.shape == (n, d)
    assert anchors.dtype == np.float64
    wanted = np.full((n, n), -1 / (n - 1) if n > 1 else 1.0)
    np.fill_diagonal(wanted, 1)
    assert np.abs(anchors @ anchors.T - wanted).max() < 1e-12


@pytest.mark.parametrize(("n", "d"), [(4, 2), (6, 3), (20, 12), (24, 12), (514, 512), (1024, 512)])
def test_up_to_twice_the_dimensions_no_cosine_is_positive(n: int, d: int) -> None:
    anchors = tammes(n, d)

    gram = np.round(anchors @ anchors.T, 12)
    assert set(np.unique(gram)) <= {-1.0, 0.0, 1.0}
    assert (gram == 1).sum() == n
    assert (gram == -1).sum() == 2 * (n - d)


@pytest.mark.parametrize(
    ("n", "d", "best"),
    [
        (12, 3, 1 / 5**0.5),  # icosahedron
        (24, 3, 0.72306),  # snub cube (Robinson, 1961)
        (24, 4, 0.5),  # 24-cell: an optimum that is hard to find, Sloane's tables
        (120, 8, 0.48),
    ],
)
def test_few_anchors_come_near_the_best_known_arrangement(n: int, d: int, best: float) -> None:
    anchors = tammes(n, d)

    assert best - 1e-4 < cosines(anchors).max() < best + 0.035
    assert np.allclose(np.linalg.norm(anchors, axis=1), 1, atol=1e-12)


def test_many_anchors_are_better_than_unbiased_bases_and_far_better_than_random_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline_steps.identities.anchors.WORK", 1e10)
    n, d = 500, 64

    reached = cosines(tammes(n, d)).max()

    assert reached < 1 / 31**0.5 - 0.005
    assert reached < cosines(random_anchors(n, d)).max() / 2


def test_without_time_for_a_descent_the_bases_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_steps.identities.anchors.WORK", 0)
    p = 7  # the largest prime below 17 / 2

    full = tammes(4 * p * p, 17)
    too_many = tammes(4 * p * p + 1, 17)

    assert np.abs(cosines(full)).max() == pytest.approx(1)  # v and -v
    assert cosines(full).max() <= 1 / p**0.5 + 1e-6
    assert cosines(too_many).max() > 1 / p**0.5


def test_a_seed_gives_the_same_anchors_and_another_seed_others() -> None:
    assert np.array_equal(tammes(30, 8, 3), tammes(30, 8, 3))
    for n in (5, 12, 30):
        assert np.abs(tammes(n, 8, 3) - tammes(n, 8, 4)).max() > 0.1
    assert np.abs(random_anchors(5, 8, 1) - random_anchors(5, 8, 2)).max() > 0.1


def test_the_largest_cosine_is_that_of_all_pairs_across_tiles() -> None:
    rows = random_anchors(1200, 6)
    rows[1150] = rows[3]

    assert largest_cosine(rows) == pytest.approx(1)
    assert largest_cosine(rows[:1100]) == pytest.approx(cosines(rows[:1100]).max())


def test_the_manifold_pulls_anchors_towards_faces_and_keeps_them_apart() -> None:
    rng = np.random.default_rng(0)
    # faces fill a quarter of the dimensions
    faces = np.pad(rng.standard_normal((300, 8)), ((0, 0), (0, 24)))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    start = random_anchors(60, 32)

    pulled, apart = on_manifold(start, faces, 0.5), on_manifold(start, faces, 0.0)

    def nearness(anchors: np.ndarray) -> float:
        return float((anchors @ faces.T).max(axis=1).mean())

    assert nearness(pulled) > nearness(start) + 0.1
    assert cosines(apart).max() < cosines(pulled).max() < 0.98
    assert pulled.dtype == np.float64
    assert np.allclose(np.linalg.norm(pulled, axis=1), 1, atol=1e-12)


def test_perturbed_embeddings_lie_uniformly_in_the_cone_and_round_the_anchor() -> None:
    anchors = random_anchors(3, 16)

    around = perturb(5 * anchors, 4000, 0.5, 0.7, np.random.default_rng(1))

    assert around.shape == (3, 4000, 16)
    assert np.allclose(np.linalg.norm(around, axis=2), 1, atol=1e-12)
    cosine = np.einsum("nmd,nd->nm", around, anchors)
    assert cosine.min() >= 0.5 - 1e-12
    assert cosine.max() <= 0.7 + 1e-12
    assert np.abs(np.quantile(cosine, [0.1, 0.5, 0.9], axis=1).T - [0.52, 0.6, 0.68]).max() < 0.01
    # what is normal to the anchor has no direction of its own
    normal = around - cosine[..., None] * anchors[:, None]
    assert np.linalg.norm(normal.mean(axis=1), axis=1).max() < 0.05


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.7, 0.5), (-1.5, 0), (0, 1.1), (np.nan, 1)):
        with pytest.raises(ValueError, match="not in"):
            perturb(np.eye(3), 2, low, high, rng)
    with pytest.raises(ValueError, match="at least 1 in 2"):
        tammes(0, 8)
    with pytest.raises(ValueError, match="at least 1 in 2"):
        tammes(3, 1)
    with pytest.raises(ValueError, match="columns"):
        on_manifold(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="strength"):
        on_manifold(np.eye(3), np.eye(3), 1.0)
    with pytest.raises(ValueError, match="zero row"):
        perturb(np.zeros((1, 3)), 2, 0, 1, rng)
