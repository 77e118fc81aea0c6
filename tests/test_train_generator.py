"""The step that trains weights for everybody: what it leaves, and that it goes on after a crash."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import train_generator
from pipeline_steps.diffusion.face_fusion import FILE_NAME
from pipeline_steps.diffusion.training import id3
from pipeline_steps.diffusion.training.generator import Training
from pipeline_steps.diffusion.training.weights import WeightsTraining
from pipeline_steps.faces.detection import Detection
from pipeline_steps.io.images import write_png
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings
from tests.diffusion.tiny_study import base_weights
from tests.registry import entry

ROOT = Path(__file__).parents[1]
DYING = """
import os, signal, sys
from pathlib import Path
from pipeline_steps import train_generator
from pipeline_steps.diffusion.training.generator import Training
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings
config, images, out = map(Path, sys.argv[1:])
step = Training.step
def dying(self):
    if self.step_number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
Training.step = dying
frozen = load_frozen(config, GeneratorSettings)
train_generator.run(frozen, images=images, out=out, checkpoint_minutes=0)
"""
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


def asked(
    weights: dict[str, Weights], variant: dict[str, str] = VARIANT, **settings: object
) -> Frozen[GeneratorSettings]:
    own = GeneratorSettings.model_validate({"steps": 4, "warm_up": 1, **settings})
    return Frozen("test", "train_generator", 7, own, weights, variant)


def run(
    weights: dict[str, Weights],
    images: Path,
    out: Path,
    variant: dict[str, str] = VARIANT,
    **settings: object,
) -> dict:
    frozen = asked(weights, variant, **settings)
    train_generator.run(frozen, images=images, out=out, checkpoint_minutes=0)
    record: dict = json.loads((out / "training.json").read_text())
    return record


def test_a_killed_training_goes_on_bit_for_bit(
    weights: dict[str, Weights], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, config = asked(weights), tmp_path / "config.json"
    parts = vars(frozen) | {"settings": frozen.settings.model_dump(mode="json")}
    parts["weights"] = {role: own.model_dump(mode="json") for role, own in weights.items()}
    config.write_text(json.dumps(parts))
    told = [sys.executable, "-c", DYING, *map(str, (config, images, tmp_path / "again"))]
    assert subprocess.run(told, cwd=ROOT).returncode == -signal.SIGKILL
    whole, step = run(weights, images, tmp_path / "whole"), Training.step
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


class Finder:
    """Finds a face in the middle of every image but the third, and counts what it is shown."""

    def __init__(self) -> None:
        self.seen = 0

    def faces(self, images: torch.Tensor) -> list[Detection | None]:
        places = range(self.seen, self.seen + len(images))
        self.seen += len(images)
        return [None if place == 2 else Detection(BOX, MARKS, 1.0) for place in places]

    def embed(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images[:, :, 8:24, 8:24], 4).flatten(1)


BOX = np.array([8, 8, 24, 24], dtype=np.float32)
MARKS = np.array([[12, 13], [20, 13], [16, 17], [13, 20], [19, 20]], dtype=np.float32)
OF_ID3 = {
    "average": 0.9,
    "embeddings": {
        **{"start": "base_model", "trains": "attention", "hidden": 8, "tokens": 2},
        "embedding_of": "person",
    },
}


@pytest.fixture
def people(images: Path) -> Path:
    """Three images of a person, of which one shows no face, and one image of another."""
    shutil.copy(images / "alone.png", images / "anna" / "2.png")
    (images / "anna" / "0.json").write_text('{"age": 40, "yaw": -30, "place": "beach"}')
    return images


def test_id3_learns_from_faces_that_are_known_once(
    weights: dict[str, Weights], people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = Finder()
    judge = entry("recogniser", "iresnet", people)
    monkeypatch.setattr(id3, "load_guide", lambda *_: finder)
    monkeypatch.setattr(id3, "weights_hash", lambda of: of.name)
    variant = VARIANT | {"method": "id3"}

    def trained(out: str, **more: object) -> dict:
        both = weights | {"recogniser": judge}
        return run(both, people, tmp_path / out, variant=variant, **(OF_ID3 | more))

    whole = trained("whole")
    step = WeightsTraining.step

    def killed(self: WeightsTraining) -> None:
        if self.step_number == 2:
            raise SystemExit("killed")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(WeightsTraining, "step", killed)
        finder.seen = 0
        with pytest.raises(SystemExit):
            trained("again")
    assert finder.seen == 4
    assert trained("again") == whole
    assert finder.seen == 4  # known, and not looked for again
    assert not (tmp_path / "again" / "checkpoints").exists()  # embeddings of people
    assert {name: len(curve) for name, curve in whole["terms"].items()} == dict.fromkeys(
        ("noise", "reconstruction", "likeness"), 4
    )
    content = load_file(tmp_path / "whole" / id3.FILE_NAME)
    facts = content.pop(id3.TRAINED_ON)
    assert len(facts) == 3 and any(
        torch.equal(row[[0, 2]], torch.tensor([40.0, -30.0])) for row in facts
    )
    assert facts[:, 0].isnan().sum() == 2 and facts[:, 1:].isfinite().all()
    prefixes = {name.split(".")[0] for name in content}
    assert prefixes == {"unet", "condition"}
    assert trained("last", average=None)["weights_sha256"] != whole["weights_sha256"]


@pytest.mark.parametrize("start", ["nothing", "base_model"])
def test_what_is_trained_stays_in_single_precision_beside_half_precision(
    start: str,
    weights: dict[str, Weights],
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(id3, "load_guide", lambda *_: Finder())
    monkeypatch.setattr(id3, "weights_hash", lambda of: of.name)
    both = weights | {"recogniser": entry("recogniser", "iresnet", people)}
    how = {"start": start, "trains": "all", "hidden": 8, "tokens": 2}
    seen: set[torch.dtype] = set()
    step = WeightsTraining.step

    def watched(self: WeightsTraining) -> None:
        step(self)
        seen.update(p.dtype for p in self._trained.values())

    monkeypatch.setattr(WeightsTraining, "step", watched)
    variant = VARIANT | {"method": "id3"}
    found = run(both, people, tmp_path / "out", variant=variant, precision="bf16", embeddings=how)
    assert seen == {torch.float32}
    assert np.isfinite(found["losses"]).all()


def test_broken_facts_and_images_without_faces_are_told(
    weights: dict[str, Weights], people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = Finder()
    monkeypatch.setattr(id3, "load_guide", lambda *_: finder)
    monkeypatch.setattr(id3, "weights_hash", lambda of: of.name)
    both = weights | {"recogniser": entry("recogniser", "iresnet", people)}
    variant = VARIANT | {"method": "id3"}
    (people / "anna" / "0.json").write_text("[1, 2]")
    with pytest.raises(StepError, match=r"anna/0\.json holds no attributes"):
        run(both, people, tmp_path / "out", variant=variant, **OF_ID3)
    monkeypatch.setattr(finder, "faces", lambda images: [None] * len(images))
    (people / "anna" / "0.json").unlink()
    with pytest.raises(StepError, match="no training image shows a face"):
        run(both, people, tmp_path / "out", variant=variant, **OF_ID3)


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
