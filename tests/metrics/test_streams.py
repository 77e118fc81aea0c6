from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from pyeer.eer_info import get_eer_stats

from pipeline_steps.metrics import score_bins, score_tiles
from pipeline_steps.metrics.pairs import compare_between, compare_within
from pipeline_steps.metrics.score_tiles import tiles_between, tiles_within
from pipeline_steps.metrics.streams import streamed_error_rates
from pipeline_steps.metrics.verification import error_curve, error_rates, fnmr_at_fmr

FMRS = (0.0, 1e-4, 0.1, 1 / 3, 0.5, 1.0)


@dataclass(frozen=True)
class Listed:
    """Scores that lie in memory, in tiles of a hundred."""

    genuine: np.ndarray
    impostor: np.ndarray
    low: float = -1.0
    high: float = 1.0

    @property
    def tiles(self) -> int:
        return -(-max(len(self.genuine), len(self.impostor)) // 100)

    def tile(self, index: int):
        part = slice(100 * index, 100 * index + 100)
        return np.concatenate([self.genuine[part], self.impostor[part]]), self.genuine[part]


def scores(seed: int, n: int, m: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    genuine, impostor = rng.normal(0.4, 0.2, n), rng.normal(0.0, 0.15, m)
    return tuple(
        np.round(part, decimals).clip(-1, 1).astype(np.float32) for part in (genuine, impostor)
    )


@pytest.mark.parametrize("decimals", [9, 3, 1], ids=["distinct", "ties", "many ties"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 40), (40, 3), (500, 800), (2000, 90)])
@pytest.mark.parametrize("bins", [2, 64, 2**14])
def test_rates_are_those_of_all_scores_at_once(n: int, m: int, decimals: int, bins: int) -> None:
    for seed in range(3):
        genuine, impostor = scores(seed, n, m, decimals)
        found = streamed_error_rates(Listed(genuine, impostor), fmrs=FMRS, bins=bins)
        expected = vars(error_rates(genuine, impostor))
        exact = ("n_genuine", "n_impostor", "eer", "fmr100", "fmr1000")
        assert {name: getattr(found.rates, name) for name in exact} == {
            name: expected[name] for name in exact
        }
        for name in ("impostor_mean", "impostor_sd", "genuine_mean", "genuine_sd"):
            assert getattr(found.rates, name) == pytest.approx(expected[name], abs=1e-7)
        curve = error_curve(genuine, impostor)
        for fmr in FMRS:
            assert found.fnmr[fmr] == fnmr_at_fmr(curve, fmr), fmr


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [
        ([0.6, 0.7, 0.8], [-0.1, 0.0, 0.2]),  # separable
        ([-0.1, 0.0, 0.1], [0.6, 0.7, 0.8]),  # reversed
        ([0.5] * 9, [0.5] * 7),  # one value
        ([0.5], [0.1, 0.5, 0.9]),
        ([1.0, 1.0], [-1.0, 1.0]),  # at the ends of the range
    ],
)
def test_one_sided_and_constant_sets(genuine, impostor) -> None:
    genuine, impostor = np.float32(genuine), np.float32(impostor)
    found = streamed_error_rates(Listed(genuine, impostor), fmrs=FMRS)
    expected = error_rates(genuine, impostor)
    assert found.rates.eer == expected.eer
    assert found.rates.fmr100 == expected.fmr100
    curve = error_curve(genuine, impostor)
    assert found.fnmr[0.5] == fnmr_at_fmr(curve, 0.5)


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (20_000, 80_000)])
def test_rates_are_pyeers(n: int, m: int) -> None:
    genuine, impostor = scores(1, n, m, 4)
    found = streamed_error_rates(Listed(genuine, impostor)).rates
    theirs = get_eer_stats(genuine.tolist(), impostor.tolist())
    assert (found.eer, found.fmr100, found.fmr1000) == pytest.approx(
        (theirs.eer, theirs.fmr100, theirs.fmr1000), abs=1e-12
    )


@pytest.mark.parametrize("within", [True, False])
def test_pairs_of_embeddings_are_those_of_the_comparison(
    within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_tiles, "TILE", 50)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rng = np.random.default_rng(2)
    names = [f"ID_{i}" for i in rng.integers(0, 30, 170)]
    centres = {name: rng.standard_normal(16) for name in names}
    rows = np.stack([centres[name] for name in names]) + rng.standard_normal((170, 16))
    others, other_names = rows[::2] + 0.5, names[::2]
    if within:
        tiles, pairs = tiles_within(rows, names), compare_within(rows, names)
    else:
        tiles = tiles_between(rows, names, others, other_names)
        pairs = compare_between(rows, names, others, other_names)
    found = streamed_error_rates(tiles)
    expected = error_rates(pairs.genuine.scores, pairs.impostor.scores)
    for name, value in vars(expected).items():
        assert getattr(found.rates, name) == pytest.approx(value, rel=1e-5, abs=1e-6), name
    listed = [tiles.tile(i) for i in range(tiles.tiles)]
    genuine = np.concatenate([part[1] for part in listed])
    np.testing.assert_allclose(np.sort(genuine), np.sort(pairs.genuine.scores), atol=1e-6)


def test_the_curve_and_the_histograms_hold_every_score() -> None:
    genuine, impostor = scores(3, 400, 900, 9)
    found = streamed_error_rates(Listed(genuine, impostor), bins=32)
    edges = found.curve.thresholds
    np.testing.assert_array_equal(found.genuine, np.histogram(genuine, edges)[0])
    np.testing.assert_array_equal(found.impostor, np.histogram(impostor, edges)[0])
    lower = slice(0, 32)  # the last bin holds its upper edge
    for threshold, fmr, fnmr in zip(
        edges[lower], found.curve.fmr[lower], found.curve.fnmr[lower], strict=True
    ):
        assert fmr == pytest.approx((impostor >= threshold).mean())
        assert fnmr == pytest.approx((genuine < threshold).mean())


def test_repeated_scores_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_bins, "MERGE", 150)
    sizes = []
    original = score_bins.Distinct.result

    def noted(self):
        result = original(self)
        sizes.append(len(self.values))
        return result

    monkeypatch.setattr(score_bins.Distinct, "result", noted)
    genuine, impostor = scores(4, 900, 900, 1)
    found = streamed_error_rates(Listed(genuine, impostor), bins=2)
    assert found.rates.eer == error_rates(genuine, impostor).eer
    assert len(sizes) > 4
    assert max(sizes) < 25


def test_empty_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="no impostor scores"):
        streamed_error_rates(Listed(np.float32([0.1]), np.empty(0, np.float32)))
    with pytest.raises(ValueError, match="no genuine scores"):
        streamed_error_rates(tiles_within(np.eye(3), list("abc")))
