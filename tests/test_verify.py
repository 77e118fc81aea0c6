"""The verify step from a model to its table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from pipeline_steps import verify
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.metrics.intervals import wilson_interval
from pipeline_steps.naming import VERIFICATION_COLUMNS
from pipeline_steps.recognition.backbones import Architecture, save_backbone
from pipeline_steps.recognition.benchmarks import write_bin
from pipeline_steps.runtime.errors import StepError


def benchmark(path: Path, seed: int, n_pairs: int = 40) -> Path:
    """Pairs of one random pattern with noise, or of two; blurred enough to be mistaken at times."""
    rng = np.random.default_rng(seed)
    same = np.arange(n_pairs) % 2 == 0
    images = []
    for flag in same:
        first = rng.normal(size=(4, 4, 3))
        second = first if flag else rng.normal(size=(4, 4, 3))
        for pattern in (first, second):
            image = 128 + 40 * np.kron(pattern, np.ones((28, 28, 1)))
            image = image + rng.normal(0, 50, (4, 4, 3)).repeat(28, 0).repeat(28, 1)
            images.append(image.clip(0, 255).astype(np.uint8))
    write_bin(path, np.stack(images), same)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained network: its random features already tell random patterns apart."""
    torch.manual_seed(0)
    built_as = Architecture((1, 1, 1, 1), (16,) * 5, embedding_dim=32, input_size=32)
    path = tmp_path / "model.safetensors"
    validation = benchmark(tmp_path / "plain.bin", seed=1)
    metadata = {"validation": "plain", "validation_sha256": sha256_file(validation)}
    save_backbone(path, built_as.build(), built_as, metadata)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    frozen = {"study": "t", "step": "verify", "seed": 0, "settings": {}}
    path = tmp_path / "verify.json"
    path.write_text(json.dumps({**frozen, "weights": {}, "variant": {}}))
    return path


def run(config: Path, model: Path, *benchmarks: Path) -> list[dict[str, str]]:
    out = model.parent / "verification.csv"
    arguments = [f"--config={config}", f"--model={model}", f"--out={out}"]
    assert verify.main([*arguments, "--benchmarks", *map(str, benchmarks)]) == 0
    with out.open() as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_a_row_per_benchmark(config: Path, model: Path, tmp_path: Path) -> None:
    other = benchmark(tmp_path / "cross_pose.bin", seed=2)
    rows = run(config, model, tmp_path / "plain.bin", other)
    assert list(rows[0]) == list(VERIFICATION_COLUMNS)
    assert [(row["benchmark"], row["role"]) for row in rows] == [
        ("plain", "validation"),
        ("cross_pose", "test"),
    ]
    for row in rows:
        accuracy = float(row["accuracy"])
        assert row["n_pairs"] == "40"
        assert 0.5 < accuracy < 1
        # Folds vary more or less than independent pairs do: the effective number of pairs.
        error = float(row["accuracy_sd"]) / 3  # of a mean of ten
        effective = min(40, accuracy * (1 - accuracy) / max(error**2, 1e-12))
        expected = wilson_interval(accuracy, effective, stats.t.ppf(0.975, 9))
        assert (float(row["low"]), float(row["high"])) == pytest.approx(expected, abs=1e-5)


def test_a_copy_of_the_validation_benchmark_is_no_test(
    config: Path, model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "renamed.bin"
    shutil.copy(tmp_path / "plain.bin", copy)
    assert run(config, model, copy)[0]["role"] == "validation"


def test_accuracy_is_the_one_of_flip_summed_embeddings(
    config: Path, model: Path, tmp_path: Path
) -> None:
    """The whole chain again by hand: decode, shrink, embed, add the mirror image, compare."""
    import pickle

    import cv2

    from pipeline_steps.recognition.backbones import load_backbone

    network = load_backbone(model)[0]
    with (tmp_path / "plain.bin").open("rb") as stream:
        encoded, same = pickle.load(stream)
    embeddings = []
    for content in encoded:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        x = torch.tensor((image / 255 - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
        x = functional.interpolate(x, size=(32, 32), mode="area")
        with torch.inference_mode():
            total = (network(x) + network(torch.flip(x, [3])))[0].numpy()
        embeddings.append(total / np.linalg.norm(total))
    distances = [
        float(np.sum((embeddings[2 * i] - embeddings[2 * i + 1]) ** 2)) for i in range(len(same))
    ]
    accuracies = []
    for fold in range(10):
        test = range(4 * fold, 4 * fold + 4)
        hits = [
            sum((distances[i] < t) == same[i] for i in range(40) if i not in test)
            for t in np.arange(0, 4, 0.01)
        ]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(hits))]
        accuracies.append(np.mean([(distances[i] < threshold) == same[i] for i in test]))
    row = run(config, model, tmp_path / "plain.bin")[0]
    assert float(row["accuracy"]) == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert float(row["accuracy_sd"]) == pytest.approx(np.std(accuracies), abs=1e-6)


def test_a_model_that_was_not_trained_has_a_row_per_benchmark_that_says_why(
    config: Path, model: Path, tmp_path: Path
) -> None:
    save_tensors(model, {}, {"untrained": "no aligned image", "validation": "plain"})
    rows = run(config, model, tmp_path / "plain.bin", benchmark(tmp_path / "other.bin", seed=2))
    told = [(row["role"], row["accuracy"], row["n_pairs"], row["reasons"]) for row in rows]
    assert told == [(role, "", "", "no aligned image") for role in ("validation", "test")]


def test_bad_inputs_are_named(config: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"nowhere\.bin"):
        run(config, model, tmp_path / "nowhere.bin")
    with pytest.raises(StepError, match="share a name"):
        run(config, model, tmp_path / "plain.bin", tmp_path / "a" / "plain.bin")
    few = tmp_path / "few.bin"
    write_bin(few, np.zeros((4, 112, 112, 3), np.uint8), [True, False])
    with pytest.raises(StepError, match=r"few\.bin.*at least 10 pairs"):
        run(config, model, few)
    with pytest.raises(StepError, match="recognise step again"):
        run(config, tmp_path / "no_model", tmp_path / "plain.bin")
