from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from pipeline_steps.metrics.vendi import vendi_score, vendi_within


@pytest.mark.parametrize(("n", "d"), [(12, 30), (40, 6)])
def test_equals_the_definition_with_scipys_entropy(n: int, d: int) -> None:
    rows = np.random.default_rng(0).standard_normal((n, d)) + 0.5
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    eigenvalues = np.abs(scipy.linalg.eigh(unit @ unit.T / n, eigvals_only=True))
    expected = np.exp(scipy.stats.entropy(eigenvalues))
    assert vendi_score(rows) == pytest.approx(expected, rel=1e-9)


def test_counts_different_images() -> None:
    assert vendi_score(np.ones((7, 3))) == pytest.approx(1.0)
    assert vendi_score(np.eye(9) * 4) == pytest.approx(9.0)
    # Copies of orthogonal rows, 3 and 1 of 4: the entropy of (3/4, 1/4).
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert vendi_score(np.eye(4)[[0, 0, 0, 2]]) == pytest.approx(expected)


def test_is_averaged_over_identities_with_two_images() -> None:
    rows = np.concatenate([np.eye(4), np.ones((2, 4)), np.ones((1, 4))])
    names = ["a"] * 4 + ["b"] * 2 + ["c"]
    assert vendi_within(rows, names) == pytest.approx((4.0 + 1.0) / 2)
    assert np.isnan(vendi_within(rows[:2], ["a", "b"]))
    with pytest.raises(ValueError, match="identity names"):
        vendi_within(rows, names[:3])
