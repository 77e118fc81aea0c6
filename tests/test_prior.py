"""The prior step: images with faces, paired with their embeddings, and a bound on drawing again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import prior
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.diffusion import PriorSettings
from tests.diffusion.tiny_study import EveryFace, base_weights, recogniser_weights, write_frozen

SETTINGS: dict[str, Any] = {"images": 5, "steps": 2, "attempts": 3}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    weights = {
        "base_model": base_weights(write_random_pipeline(folder / "tiny")),
        "recogniser": recogniser_weights(folder),
    }
    return write_frozen(folder / "prior.json", SETTINGS, weights, {"base_model": "tiny"})


@pytest.fixture
def frozen(config: Path) -> Frozen[PriorSettings]:
    return load_frozen(config, PriorSettings)


def test_images_and_embeddings_are_paired_by_name(
    frozen: Frozen[PriorSettings], tmp_path: Path
) -> None:
    prior.run(frozen, out=tmp_path, guide=EveryFace())
    manifest = read_manifest(tmp_path / "manifest.parquet")
    stored = load_features(tmp_path / "embeddings.safetensors", key="embeddings")
    assert list(manifest["file"]) == stored.files
    assert len(stored.files) == 5
    np.testing.assert_allclose(np.linalg.norm(stored.features, axis=1), 1.0, rtol=1e-5)
    for file, digest, row in zip(stored.files, manifest["sha256"], stored.features, strict=True):
        assert sha256_file(tmp_path / file) == digest
        pixels = torch.from_numpy(read_image(tmp_path / file)).permute(2, 0, 1)[None]
        expected = EveryFace().embed(pixels / 127.5 - 1, torch.zeros(1, 4))
        np.testing.assert_allclose(row, expected[0] / expected.norm(), atol=1e-6)


def test_samples_without_a_face_are_rows_and_made_again(
    frozen: Frozen[PriorSettings], tmp_path: Path
) -> None:
    prior.run(frozen, out=tmp_path, guide=EveryFace(blind_every=3))
    manifest = read_manifest(tmp_path / "manifest.parquet")
    rejected = manifest[~manifest["kept"]]
    assert len(rejected) >= 1
    assert set(rejected["reason"]) == {"no face"}
    assert sorted(manifest[manifest["kept"]]["index"]) == list(range(5))
    assert manifest["seed"].is_unique
    assert len(list((tmp_path / "images").glob("*.png"))) == 5


class Killed(BaseException):
    """What ends a process."""


class Dies(EveryFace):
    """Sees faces, and ends the process at a chosen image."""

    def boxes(self, images: torch.Tensor) -> list[np.ndarray | None]:
        if self.seen >= 2:
            raise Killed
        return super().boxes(images)


def test_finished_images_are_kept_and_a_killed_run_ends_as_a_whole_one(
    frozen: Frozen[PriorSettings], tmp_path: Path
) -> None:
    prior.run(frozen, out=tmp_path / "whole", batch_size=2, guide=EveryFace())
    with pytest.raises(Killed):
        prior.run(frozen, out=tmp_path / "out", batch_size=2, guide=Dies())
    assert not (tmp_path / "out/manifest.parquet").exists()
    guide = EveryFace()
    prior.run(frozen, out=tmp_path / "out", batch_size=2, guide=guide)
    assert guide.seen == 3
    prior.run(frozen, out=tmp_path / "out", guide=guide)
    (tmp_path / "out/images/4.png").unlink()
    more = replace(frozen, settings=frozen.settings.model_copy(update={"attempts": 2}))
    prior.run(more, out=tmp_path / "out", batch_size=2, guide=guide)
    assert guide.seen == 4
    for file in ("manifest.parquet", "embeddings.safetensors"):
        assert sha256_file(tmp_path / "out" / file) == sha256_file(tmp_path / "whole" / file)


def test_batch_size_changes_nothing_but_float_noise(
    frozen: Frozen[PriorSettings], tmp_path: Path
) -> None:
    for size in (1, 4):
        prior.run(frozen, out=tmp_path / str(size), batch_size=size, guide=EveryFace())
    for index in range(5):
        one, four = (read_image(tmp_path / size / f"images/{index}.png") for size in ("1", "4"))
        assert np.abs(one.astype(int) - four.astype(int)).max() <= 1


def test_a_model_that_never_shows_a_face_is_refused_after_the_bound(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights paint noise, in which the real detector finds nothing."""
    status = run_main(lambda: prior.main(["--config", str(config), "--out", str(tmp_path / "out")]))
    assert status == 2
    assert "show no face after 3 attempts" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.parquet").exists()


def test_missing_weights_are_named(frozen: Frozen[PriorSettings], tmp_path: Path) -> None:
    entry = frozen.weights["base_model"].model_copy(update={"source": str(tmp_path / "nowhere")})
    broken = Frozen(frozen.study, frozen.step, frozen.seed, frozen.settings, {"base_model": entry})
    with pytest.raises(StepError, match="nowhere"):
        prior.run(broken, out=tmp_path, guide=EveryFace())
