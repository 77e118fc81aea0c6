from __future__ import annotations

import numpy as np
import pytest

from pipeline_steps.metrics import score_tiles, streamed_intervals
from pipeline_steps.metrics.jackknife import verification_intervals
from pipeline_steps.metrics.pairs import compare_between, compare_within
from pipeline_steps.metrics.score_tiles import tiles_between, tiles_within
from pipeline_steps.metrics.verification import error_rates


def people(seed: int, count: int = 30) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((count, 12)), 6, axis=0)
    scatter = np.repeat(rng.uniform(0.5, 1.5, count), 6)[:, None]
    images = [centres + scatter * rng.standard_normal(centres.shape) for _ in range(2)]
    return images[0], images[1], [f"ID_{i:03}" for i in range(count) for _ in range(6)]


@pytest.mark.parametrize("within", [True, False])
def test_intervals_are_those_of_all_pairs_at_once(
    within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_tiles, "TILE", 50)
    rows, others, names = people(0)
    if within:
        tiles, pairs = tiles_within(rows, names), compare_within(rows, names)
    else:
        tiles = tiles_between(rows, names, others, names)
        pairs = compare_between(rows, names, others, names)
    rates = error_rates(pairs.genuine.scores, pairs.impostor.scores)
    expected = verification_intervals(pairs, rates, np.random.default_rng(0))
    found = streamed_intervals.streamed_intervals(tiles, rates)
    # Interpolated rates have no steps, so the limits differ a little.
    width = expected.eer.high - expected.eer.low
    assert found.eer.low == pytest.approx(expected.eer.low, abs=0.1 * width)
    assert found.eer.high == pytest.approx(expected.eer.high, abs=0.1 * width)
    assert found.fdr.low == pytest.approx(expected.fdr.low, rel=1e-4)
    assert found.fdr.high == pytest.approx(expected.fdr.high, rel=1e-4)


def test_people_in_groups_give_intervals_of_like_width(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, names = people(1, count=60)
    tiles = tiles_within(rows, names)
    pairs = compare_within(rows, names)
    rates = error_rates(pairs.genuine.scores, pairs.impostor.scores)
    one_by_one = verification_intervals(pairs, rates, np.random.default_rng(0)).fdr
    monkeypatch.setattr(streamed_intervals, "GROUPS", 20)
    grouped = streamed_intervals.streamed_intervals(tiles, rates).fdr
    ratio = (grouped.high - grouped.low) / (one_by_one.high - one_by_one.low)
    assert 0.5 < ratio < 2.0
