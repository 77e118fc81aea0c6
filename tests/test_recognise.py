"""The recognise step from files to files."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_steps import recognise
from pipeline_steps.io.images import read_image, write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.recognise import HISTORY, MODEL
from pipeline_steps.recognition.backbones import load_backbone
from pipeline_steps.recognition.benchmarks import write_bin
from pipeline_steps.recognition.dataset import NothingToTrain
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.recognition import RecogniseSettings
from pipeline_steps.study.store import INDEX
from tests.workflow.small_study import quick

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40], [40, 180, 180]])
SMALL = {
    "backbone": "custom",
    "layers": [1, 1, 1, 1],
    "widths": [16, 16, 16, 16, 16],
    "embedding_dim": 16,
    "input_size": 32,
    "batch_size": 8,
    "epochs": 3,
    "validation": "plain",
}


def face(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = colour * rng.uniform(0.7, 1.2) + rng.normal(0, 20, (112, 112, 3))
    return image.clip(0, 255).astype(np.uint8)


def aligned(folder: Path, *, identities: int = 4, each: int = 5, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for identity in range(identities):
        for i in range(each):
            file = f"ID_{identity + 1}/{i}.png"
            write_png(folder / file, face(COLOURS[identity], rng))
            rows.append({"identity": f"ID_{identity + 1}", "file": file, "kept": True})
    write_manifest(folder / "manifest.parquet", rows)
    return folder


def benchmark(path: Path, *, n_pairs: int = 20, seed: int = 9) -> Path:
    rng = np.random.default_rng(seed)
    same = np.arange(n_pairs) % 2 == 0
    images = []
    for flag in same:
        first = int(rng.integers(5))
        second = first if flag else (first + int(rng.integers(1, 5))) % 5
        images += [face(COLOURS[first], rng), face(COLOURS[second], rng)]
    write_bin(path, np.stack(images), same)
    return path


def config(path: Path, *, repetition: str = "0", seed: int = 3, **settings: object) -> Path:
    frozen = {
        "study": "test",
        "step": "recognise",
        "seed": seed,
        "settings": {**SMALL, **settings},
        "weights": {},
        "variant": {"trained_on": "real", "repetition": repetition},
    }
    path.write_text(json.dumps(frozen))
    return path


def model_bytes(config: Path, source: Path, validation: Path, out: Path) -> bytes:
    """Run the step by its command line; the model file it wrote."""
    inputs = {"config": config, "aligned": source, "validation": validation, "out": out}
    assert recognise.main([f"--{name}={path}" for name, path in inputs.items()]) == 0
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return [
        f"--config={config(tmp_path / 'recognise.json')}",
        f"--aligned={aligned(tmp_path / 'real')}",
        f"--validation={benchmark(tmp_path / 'plain.bin')}",
        f"--out={tmp_path / 'out'}",
    ]


def test_it_writes_a_model_and_its_history(arguments: list[str], tmp_path: Path) -> None:
    assert recognise.main(arguments) == 0
    network, built_as, metadata = load_backbone(tmp_path / "out" / "model.safetensors")
    assert built_as.widths == (16, 16, 16, 16, 16)
    assert network.embedding_dim == 16
    assert metadata["validation"] == "plain"
    assert json.loads(metadata["identities"]) == ["ID_1", "ID_2", "ID_3", "ID_4"]
    assert metadata["n_images"] == "20"
    with (tmp_path / "out" / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["learning_rate"]) == pytest.approx(0.1 / 512 * 8)
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    assert rows[int(np.argmax(accuracies))]["best"] == "1"
    kept = tmp_path / "out" / recognise.KEPT
    assert {path.name for path in (tmp_path / "out").iterdir()} == {kept.name, MODEL, HISTORY}
    assert {path.name for path in kept.iterdir()} == {INDEX, MODEL, HISTORY}


def test_what_was_trained_is_not_trained_again_until_something_counts(
    arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert recognise.main(arguments) == 0
    model, history = (out / MODEL).read_bytes(), (out / HISTORY).read_bytes()

    def trains() -> bool:
        """Run again as a workflow manager does: the outputs are gone first."""
        for name in (MODEL, HISTORY):
            (out / name).unlink()
        stamp = (out / recognise.KEPT / MODEL).stat().st_mtime_ns
        assert recognise.main(arguments) == 0
        return (out / MODEL).stat().st_mtime_ns != stamp

    for path in (tmp_path / "real").rglob("*"):
        os.utime(path)
    assert not trains()
    assert ((out / MODEL).read_bytes(), (out / HISTORY).read_bytes()) == (model, history)
    (out / recognise.KEPT / MODEL).write_bytes(model[:-1])  # damaged: made anew
    assert trains()
    assert (out / MODEL).read_bytes() == model
    image = tmp_path / "real" / "ID_1" / "0.png"
    write_png(image, 255 - read_image(image.read_bytes()))
    assert trains()
    assert (out / MODEL).read_bytes() != model
    benchmark(tmp_path / "plain.bin", seed=10)
    assert trains()
    frozen = config(tmp_path / "recognise.json", weight_decay=0.1)
    assert trains()
    assert not trains()
    frozen.write_text(json.dumps(json.loads(frozen.read_text()) | {"code": "edited"}))
    assert trains()


def test_the_same_inputs_give_the_same_bytes_and_repetitions_differ(tmp_path: Path) -> None:
    source, validation = aligned(tmp_path / "real"), benchmark(tmp_path / "plain.bin")
    models = []
    for run, repetition in enumerate(("0", "0", "1")):
        file = config(tmp_path / f"{run}.json", repetition=repetition, epochs=1)
        models.append(model_bytes(file, source, validation, tmp_path / str(run)))
    assert models[0] == models[1]
    assert models[0] != models[2]


def test_real_and_synthetic_sources_are_joined(arguments: list[str], tmp_path: Path) -> None:
    synthetic = aligned(tmp_path / "synthetic", identities=5, each=3, seed=1)
    joined = ["--aligned", str(tmp_path / "real"), str(synthetic)]
    assert recognise.main([arguments[0], *joined, *arguments[2:]]) == 0
    metadata = load_backbone(tmp_path / "out" / "model.safetensors")[2]
    assert metadata["n_images"] == "35"
    assert len(json.loads(metadata["identities"])) == 5
    assert json.loads(metadata["trained_on"]) == ["real", "synthetic"]


def test_another_validation_benchmark_than_configured_is_refused(
    arguments: list[str], tmp_path: Path
) -> None:
    other = benchmark(tmp_path / "cross_age.bin")
    with pytest.raises(StepError, match=r"cross_age\.bin.*'plain'"):
        recognise.main([*arguments[:2], f"--validation={other}", arguments[3]])


def test_randaugment_and_dropout_run_and_stay_reproducible(tmp_path: Path) -> None:
    source, validation = aligned(tmp_path / "real"), benchmark(tmp_path / "plain.bin")
    options: dict[str, Any] = {"augmentation": "randaugment", "epochs": 1, "dropout": 0.4}
    file = config(tmp_path / "c.json", **options)
    models = [model_bytes(file, source, validation, tmp_path / name) for name in ("a", "b")]
    assert models[0] == models[1]


def test_a_terminated_and_then_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Real processes: SIGTERM, then SIGKILL, then to the end."""
    source, validation = aligned(tmp_path / "real", each=8), benchmark(tmp_path / "plain.bin")
    file = config(
        tmp_path / "c.json", epochs=14, stop_patience=1000, loss="adaface", repetition="2"
    )
    inputs = {"config": file, "aligned": source, "validation": validation}
    start = [sys.executable, "-m", "pipeline_steps.recognise"]
    start += [f"--{name}={path}" for name, path in inputs.items()]
    # A process too, since sums depend on the number of threads, which tests change in this one.
    how: dict[str, Any] = {"env": os.environ | quick()}
    subprocess.run([*start, f"--out={tmp_path / 'whole'}"], check=True, capture_output=True, **how)
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    out = tmp_path / "out"
    command = [*start, f"--out={out}"]
    log = tmp_path / "log"

    def run_until(epoch: int, sent: signal.Signals) -> int:
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, **how)
            while f"epoch {epoch}:" not in log.read_text() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(sent)
            return process.wait(timeout=60)

    assert run_until(2, signal.SIGTERM) == os.EX_TEMPFAIL
    assert "stopped: epoch" in log.read_text()
    assert not (out / "model.safetensors").exists()
    assert run_until(7, signal.SIGKILL) == -signal.SIGKILL
    epochs = re.findall(r"epoch (\d+):", log.read_text())
    assert 2 <= int(epochs[0]) <= 5  # went on; did not start anew
    assert (out / recognise.KEPT / recognise.STATE).is_file()
    assert subprocess.run(command, check=False, capture_output=True, **how).returncode == 0
    assert (out / "model.safetensors").read_bytes() == whole
    assert (out / "history.csv").read_text() == (tmp_path / "whole/history.csv").read_text()
    assert not (out / recognise.KEPT / recognise.STATE).exists()


def test_divergence_is_one_clear_sentence(tmp_path: Path) -> None:
    file = config(tmp_path / "c.json", learning_rate_per_512=1e38, clip_norm=1e38)
    source, validation = aligned(tmp_path / "real"), benchmark(tmp_path / "plain.bin")
    with pytest.raises(StepError, match=r"diverged.*learning_rate_per_512"):
        model_bytes(file, source, validation, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_defaults_are_the_papers() -> None:
    settings = RecogniseSettings()
    assert settings.backbone == "iresnet18"
    assert (settings.loss, settings.scale, settings.margin) == ("cosface", 64.0, 0.35)
    learning_rate = settings.learning_rate_per_512 / 512 * settings.batch_size
    assert learning_rate == pytest.approx(0.025)
    assert (settings.momentum, settings.weight_decay, settings.clip_norm) == (0.9, 5e-4, 5.0)
    assert (settings.epochs, settings.plateau_patience, settings.stop_patience) == (200, 4, 6)
    assert settings.dropout == 0.4


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "custom"},
        {"layers": (1, 1, 1, 1)},
        {"validate": "lfw"},
        {"input_size": 50},
        {"schedule": "step"},
        {"milestones": (3,)},
        {"schedule": "step", "milestones": (9, 3)},
        {"schedule": "step", "milestones": (300,)},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="RecogniseSettings"):
        RecogniseSettings.model_validate(settings)


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from pipeline_steps import recognise, verify\n"
        "for step in (recognise, verify):\n"
        "    try: step.main(['--help'])\n"
        "    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--validation" in done.stdout
    assert "--benchmarks" in done.stdout


def test_a_set_without_a_face_is_an_empty_model_that_says_why(
    arguments: list[str], tmp_path: Path
) -> None:
    missed = {"identity": "ID_1", "file": None, "kept": False}
    write_manifest(tmp_path / "real" / "manifest.parquet", [missed])
    assert recognise.main(arguments) == 0
    with pytest.raises(NothingToTrain, match="real has no aligned image"):
        load_backbone(tmp_path / "out" / "model.safetensors")
    assert len((tmp_path / "out" / "history.csv").read_text().splitlines()) == 1
