"""People who do not exist: who is refused, and what is written of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps import invent
from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.identities.anchors import random_anchors, refused
from pipeline_steps.identities.dataset import TARGETS, read_subjects
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import InventSettings
from tests.diffusion.tiny_study import recogniser_weights

WIDTH = 48


@pytest.fixture
def judge(tmp_path: Path) -> Weights:
    return recogniser_weights(tmp_path)


@pytest.fixture
def faces(tmp_path: Path) -> list[Path]:
    paths = []
    for seed, source in enumerate(("wild", "real")):
        path = tmp_path / "features" / source / "judge.safetensors"
        rows = random_anchors(20, WIDTH, seed).astype(np.float32)
        save_features(path, rows, [f"{k}.png" for k in range(20)])
        paths.append(path)
    return paths


def invented(judge: Weights, faces: list[Path], out: Path, **settings: object) -> dict:
    asked = InventSettings.model_validate({"people": 12, **settings})
    invent.run(Frozen("test", "invent", 7, asked, {"recogniser": judge}), faces=faces, out=out)
    told: dict = json.loads((out / "report.json").read_text())
    return told


def test_planted_people_are_found() -> None:
    real = random_anchors(30, WIDTH, 0)
    anchors = random_anchors(10, WIDTH, 1)
    anchors[3] = real[17] + 0.01 * anchors[3]  # somebody of the training set
    anchors[8] = 2 * anchors[2]  # the same person again
    names = [f"wild/{k}.png" for k in range(30)]
    found = refused(anchors, real, names, 0.7)
    assert set(found) == {3, 8}
    assert "1.00 to wild/17.png" in found[3] and "1.00 to anchor 3" in found[8]


@pytest.mark.parametrize("kind", ["tammes", "random", "manifold"])
def test_people_are_nobody_else_and_described_as_photographed_ones_are(
    judge: Weights, faces: list[Path], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    told = invented(judge, faces, out, anchors=kind, most_alike=0.6)
    people = read_subjects(out)
    assert [one.identity for one in people] == [f"MU_{k}" for k in range(1, 13)]
    assert not any(one.files for one in people)
    anchors = load_features(out / TARGETS, key="embeddings", made_by=embedded_by(judge))
    assert anchors.files == [one.identity for one in people]
    np.testing.assert_allclose(np.linalg.norm(anchors.features, axis=1), 1, rtol=1e-6)
    real = np.concatenate([load_features(path).features for path in faces])
    nearest = (anchors.features @ real.T).max(axis=1)
    assert nearest.max() <= 0.6 + 1e-6
    assert (nearest.mean() > 0.4) == (kind == "manifold")  # these are more like faces
    others = anchors.features @ anchors.features.T - 2 * np.eye(12)
    assert others.max() <= 0.6 + 1e-6
    assert told["largest_cosine_to_another"] == pytest.approx(others.max(), abs=1e-4)


def test_too_few_directions_are_told(judge: Weights, faces: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"of 12 people are nobody else, e\.g\. anchor 1 is as"):
        invented(judge, faces, tmp_path / "out", anchors="random", most_alike=0.01)
