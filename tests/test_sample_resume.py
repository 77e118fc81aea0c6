"""A sample step that is killed or asked to stop loses no finished image; foreign weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import sample
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.lora import FILE_NAME, AdapterBank
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.io.weights import Weights
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.sampling import SampleSettings, read_prompt_set
from tests.diffusion.tiny_study import base_weights, write_dataset, write_frozen
from tests.workflow.small_study import quick

PROMPTS = Path(__file__).parents[1] / "config" / "prompts"
STUDY = {"base_model": "tiny", "prompts": "base"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Weights]]:
    folder = tmp_path_factory.mktemp("inputs")
    write_dataset(folder / "dataset", {"ID_1": 1, "ID_2": 1})
    return folder, {"base_model": base_weights(write_random_pipeline(folder / "tiny"))}


def configuration(
    path: Path, weights: dict[str, Weights], method: str = "untuned", **options: Any
) -> Path:
    settings = SampleSettings(**options).with_prompts(read_prompt_set(PROMPTS / "base.yaml"))
    return write_frozen(path, settings.model_dump(mode="json"), weights, STUDY | {"method": method})


def start(config: Path, dataset: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline_steps.sample", "--config", str(config)]
    command += ["--dataset", str(dataset), "--out", str(out), "--batch-size", "2"]
    environment = os.environ | quick() | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def finished(out: Path) -> dict[str, int]:
    """Images that the records call finished, with their times of writing."""
    found = {}
    for record in out.glob("*/items.json"):
        for place in json.loads(record.read_text()):
            path = record.parent / f"{place.partition('.')[0]}.png"
            found[path.relative_to(out).as_posix()] = path.stat().st_mtime_ns
    return found


def wait_for_images(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(finished(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_stopped_it_goes_on_with_what_is_missing(
    inputs: tuple[Path, dict[str, Weights]], tmp_path: Path
) -> None:
    folder, weights = inputs
    config = configuration(tmp_path / "c.json", weights, images_per_identity=12, steps=25)
    out = tmp_path / "out"

    process = start(config, folder / "dataset", out)
    wait_for_images(process, out, 3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed = finished(out)
    assert 3 <= len(killed) < 24
    assert not (out / "shares").exists()

    process = start(config, folder / "dataset", out)
    wait_for_images(process, out, len(killed) + 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == os.EX_TEMPFAIL
    stopped = finished(out)
    assert len(killed) < len(stopped) < 24
    assert {file: stopped[file] for file in killed} == killed

    frozen = load_frozen(config, SampleSettings)
    options: dict[str, Any] = {"dataset": folder / "dataset", "batch_size": 2}
    rows = sample.run(frozen, out=out, **options)
    resumed = finished(out)
    assert len(rows) == 24 and {file: resumed[file] for file in stopped} == stopped
    whole = sample.run(frozen, out=tmp_path / "whole", **options)
    assert rows == whole
    manifests = [tmp_path / part / "shares/0-of-1.parquet" for part in ("out", "whole")]
    assert sha256_file(manifests[0]) == sha256_file(manifests[1])


def test_weights_from_elsewhere_are_sampled_and_recorded_as_such(
    inputs: tuple[Path, dict[str, Weights]], tmp_path: Path
) -> None:
    folder, weights = inputs
    base = load_base_model(weights["base_model"])
    bank = AdapterBank(base.unet, count=1, rank=2, alpha=2.0, targets=("to_q", "to_v"))
    with torch.no_grad():
        bank.weights.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    old = {
        f"unet.{name}.lora.{part}.weight": tensor
        for name, pair in bank.adapter(0).items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }
    for identity in ("ID_1", "ID_2"):
        save_tensors(tmp_path / "elsewhere" / identity / FILE_NAME, old)
    config = configuration(tmp_path / "c.json", weights, "idbooth", images_per_identity=2, steps=2)
    rows = sample.run(
        load_frozen(config, SampleSettings),
        dataset=folder / "dataset",
        loras=tmp_path / "elsewhere",
        out=tmp_path / "out",
    )
    assert {row["weights_source"] for row in rows} == {"foreign"}
    digest = sha256_file(tmp_path / "elsewhere/ID_1" / FILE_NAME)
    manifest = read_manifest(tmp_path / "out/shares/0-of-1.parquet")
    assert set(manifest["weights_sha256"]) == {digest}
    assert all((tmp_path / "out" / file).is_file() for file in manifest["file"])
