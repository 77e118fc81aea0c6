"""The step that trains weights for everybody: what it leaves, and that it goes on after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import train_generator
from pipeline_steps.diffusion.face_fusion import FILE_NAME
from pipeline_steps.diffusion.training.generator import Training
from pipeline_steps.io.images import write_png
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings
from tests.diffusion.tiny_study import base_weights

VARIANT = {"base_model": "tiny", "method": "facefusion"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    return {"base_model": base_weights(write_random_pipeline(tmp_path_factory.mktemp("tiny")))}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("anna/0", "anna/1", "alone"):
        picture = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        write_png(tmp_path / "images" / f"{name}.png", picture)
    return tmp_path / "images"


def run(weights: dict[str, Weights], images: Path, out: Path, **settings: object) -> dict:
    asked = GeneratorSettings.model_validate({"steps": 4, "warm_up": 1, **settings})
    frozen = Frozen("test", "train_generator", 7, asked, weights, VARIANT)
    train_generator.run(frozen, images=images, out=out, checkpoint_minutes=0)
    record: dict = json.loads((out / "training.json").read_text())
    return record


def test_a_killed_training_goes_on_bit_for_bit(
    weights: dict[str, Weights], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(weights, images, tmp_path / "whole")
    with monkeypatch.context() as patch:
        step = Training.step

        def killed(self: Training) -> None:
            if self.step_number == 2:
                raise SystemExit("killed")
            step(self)

        patch.setattr(Training, "step", killed)
        with pytest.raises(SystemExit):
            run(weights, images, tmp_path / "again")
    assert not (tmp_path / "again" / FILE_NAME).exists()
    steps = []
    monkeypatch.setattr(Training, "step", lambda self: (steps.append(1), step(self)))
    again = run(weights, images, tmp_path / "again")
    assert len(steps) == 2 and again == whole
    assert len(again["losses"]) == 4 and again["losses"][0] > 0
    assert not (tmp_path / "again" / "checkpoints").exists()
    run(weights, images, tmp_path / "again")
    assert len(steps) == 2  # finished: kept
    content = load_file(tmp_path / "again" / FILE_NAME)
    assert all(name.endswith("_face.weight") and ".attn2.processor." in name for name in content)


def test_what_cannot_be_trained_is_told(
    weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    with pytest.raises(StepError, match="do not exist"):
        run(weights, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match="hold no image"):
        run(weights, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(StepError, match="learning_rate"):
        run(weights, images, tmp_path / "out", learning_rate=1e30, clip_norm=1e30)
