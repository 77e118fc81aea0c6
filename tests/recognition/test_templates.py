"""Template pooling and its error rates against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.recognition.protocol import (
    pair_scores,
    pool,
    read_template_set,
    tpr_at_fmr,
)
from pipeline_steps.runtime.errors import StepError


def test_media_are_averaged_and_templates_added_and_normalised() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 8)) * rng.lognormal(0, 1, (40, 1))
    templates = rng.choice(["t1", "t2", "t10"], 40)
    media = rng.choice(["video", "photo_a", "photo_b"], 40)  # names recur across templates
    names, pooled = pool(embeddings, templates, media)
    assert names == ["t1", "t10", "t2"]
    for name, row in zip(names, pooled, strict=True):
        total = np.zeros(8)
        for medium in set(media[templates == name]):
            members = [
                e for e, t, m in zip(embeddings, templates, media, strict=True)
                if (t, m) == (name, medium)
            ]  # fmt: skip
            total += sum(members) / len(members)
        np.testing.assert_allclose(row, total / np.linalg.norm(total), rtol=1e-5, atol=1e-6)


def test_one_image_per_template_is_plain_cosine() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 8))
    ids = np.array([f"{i:02d}" for i in range(30)])
    _, pooled = pool(x, ids, np.array(["m"] * 30))
    first, second = rng.integers(30, size=(2, 100))
    cosines = [x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b])
               for a, b in zip(first, second, strict=True)]  # fmt: skip
    np.testing.assert_allclose(pair_scores(pooled, first, second), cosines, atol=1e-6)


@pytest.mark.parametrize("fmr", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("digits", [1, 6])  # with many ties, and without
def test_the_rate_is_the_best_that_keeps_the_false_match_rate(fmr: float, digits: int) -> None:
    rng = np.random.default_rng(2)
    genuine = rng.normal(2, 1, 500).round(digits)
    impostor = rng.normal(0, 1, 3000).round(digits)
    best = 0.0
    for threshold in np.unique([*genuine, *impostor]):
        if (impostor > threshold).mean() <= fmr:
            best = max(best, (genuine > threshold).mean())
    found = tpr_at_fmr(genuine, impostor, fmr)
    assert found is not None
    assert found[0] == best
    assert (impostor > found[1]).mean() <= fmr


def test_a_rate_that_the_impostors_cannot_measure_is_not_told() -> None:
    assert tpr_at_fmr(np.ones(10), np.zeros(999), 1e-3) is None
    assert tpr_at_fmr(np.ones(10), np.zeros(1000), 1e-3) == (1.0, 0.0)
    assert tpr_at_fmr(np.ones(0), np.zeros(1000), 1e-3) is None


def put(folder: Path, members: pd.DataFrame, pairs: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    members.to_csv(folder / "templates.csv", index=False)
    pairs.to_parquet(folder / "pairs.parquet")
    return folder


def test_csv_and_parquet_are_read_and_mistakes_named(tmp_path: Path) -> None:
    members = pd.DataFrame({"template": [1, 1, 2], "media": [5, 6, 5], "file": ["a", "b", "c"]})
    pairs = pd.DataFrame({"template_a": [1, 1], "template_b": [2, 1], "same": [0, 1]})
    found = read_template_set(put(tmp_path / "good", members, pairs))
    assert found.templates.tolist() == ["1", "1", "2"]
    assert found.pairs["same"].tolist() == [False, True]
    for wrong, message in (
        ((members.drop(columns="media"), pairs), "lacks media"),
        ((members.assign(file="../x"), pairs), "leads out of images"),
        ((members, pairs.assign(same=7)), "same in pairs is 0 or 1"),
        ((members[:0], pairs), "no rows"),
    ):
        with pytest.raises(StepError, match=message):
            read_template_set(put(tmp_path / "wrong", *wrong))
    with pytest.raises(StepError, match=r"neither templates\.csv nor"):
        read_template_set(tmp_path)
