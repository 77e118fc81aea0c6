"""The features step: rows, files and metadata, for each task."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_steps import features
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study import code
from pipeline_steps.study import store as feature_store
from pipeline_steps.study.artefacts import code_of
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FeaturesSettings
from tests.registry import entry

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
LAYERS, WIDTHS = [1, 1, 1, 1], [4, 4, 4, 6, 8]


@pytest.fixture
def recogniser(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file(IResNet(LAYERS, WIDTHS, quality_head=True).state_dict(), path)
    return path


@pytest.fixture
def aligned(tmp_path):
    folder = tmp_path / "aligned"
    rows = [{"identity": "ID_1", "file": None, "landmarks": None, "kept": False}]
    for index, image in enumerate(IMAGES):
        file = f"ID_{index % 2 + 1}/{index}.png"
        write_png(folder / file, image)
        landmarks = 3.0 * ARCFACE_TEMPLATE + 20.0
        landmarks[2, 0] += 3.0 * index  # the nose moves to the image's right
        rows.append(
            {"identity": file[:4], "file": file, "landmarks": landmarks.ravel(), "kept": True}
        )
    write_manifest(folder / "manifest.parquet", rows)
    return folder


def extracted(tmp_path, aligned, weights, **options):
    frozen = Frozen("t", "features", 0, FeaturesSettings(), {"extractor": weights})
    out = tmp_path / "features" / f"{weights.name}.safetensors"
    features.run([frozen], aligned=aligned, out=[out], device="cpu", **options)
    return load_features(out)


def test_embeddings_of_kept_faces_in_the_manifests_order(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    found = extracted(tmp_path, aligned, weights)
    assert found.files == [f"ID_{index % 2 + 1}/{index}.png" for index in range(5)]
    np.testing.assert_allclose(
        found.features, load_recogniser(weights).embed(IMAGES), rtol=1e-5, atol=1e-6
    )
    assert found.metadata["extractor"] == "small_recogniser"
    assert found.metadata["task"] == "recogniser"
    assert len(found.metadata["weights_sha256"]) == 64
    assert found.metadata["preprocessing"] == "RGB 112x112, (x / 255 - 0.5) / 0.5"


def test_quality_is_one_column(tmp_path, aligned, recogniser):
    weights = entry("quality", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    found = extracted(tmp_path, aligned, weights)
    assert found.features.shape == (5, 1)
    np.testing.assert_allclose(
        found.features[:, 0], load_recogniser(weights).quality(IMAGES), rtol=1e-5, atol=1e-5
    )


def test_pose_is_read_from_the_landmarks_in_the_aligned_face(tmp_path, aligned):
    found = extracted(tmp_path, aligned, entry("pose", "landmarks", "none"))
    pitch, yaw, roll = found.features.T
    assert (np.diff(yaw) > 1.0).all()
    np.testing.assert_allclose(found.features[0], 0.0, atol=2.0)
    assert np.abs(pitch).max() < 5
    assert np.abs(roll).max() < 5
    assert "solvePnP on five landmarks" in found.metadata["preprocessing"]
    assert found.metadata["weights_sha256"] == ""


def test_batch_size_changes_nothing(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    one = extracted(tmp_path, aligned, weights, batch_size=2).features
    np.testing.assert_allclose(one, extracted(tmp_path, aligned, weights).features, atol=1e-5)


def test_known_images_are_not_extracted_again(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    first = extracted(tmp_path, aligned, weights)
    out = tmp_path / "features" / f"{weights.name}.safetensors"
    out.unlink()  # as a workflow manager does before it runs a step again
    assert again(tmp_path, aligned, weights) == 0
    assert load_features(out).features.tobytes() == first.features.tobytes()

    # One image more, one fewer, one in another place: only the new one is extracted.
    manifest = read_manifest(aligned / "manifest.parquet")
    rows = manifest.to_dict("records")
    write_png(aligned / "ID_3/9.png", IMAGES[0][::-1].copy())
    rows.append(rows[1] | {"identity": "ID_3", "file": "ID_3/9.png"})
    del rows[2]
    write_manifest(aligned / "manifest.parquet", rows[::-1])
    assert again(tmp_path, aligned, weights) == 1
    second = load_features(out)
    assert second.files == ["ID_3/9.png", "ID_1/4.png", "ID_2/3.png", "ID_1/2.png", "ID_1/0.png"]
    np.testing.assert_array_equal(second.features[1:], first.features[[4, 3, 2, 0]])
    # What left the set is not kept.
    kept = load_features(out.with_name(f".{out.name}"))
    assert "ID_2/1.png" not in kept.files
    assert len(kept.features) == 5


def again(tmp_path, aligned, weights) -> int:
    frozen = Frozen("t", "features", 0, FeaturesSettings(), {"extractor": weights})
    out = tmp_path / "features" / f"{weights.name}.safetensors"
    return features.run([frozen], aligned=aligned, out=[out], device="cpu")[0]


def test_other_pixels_landmarks_or_weights_are_extracted_again(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    assert again(tmp_path, aligned, weights) == 5
    write_png(aligned / "ID_1/0.png", IMAGES[1])  # the same name, another image
    assert again(tmp_path, aligned, weights) == 1
    rows = read_manifest(aligned / "manifest.parquet").to_dict("records")
    rows[1]["landmarks"] = np.asarray(rows[1]["landmarks"]) + 0.5
    write_manifest(aligned / "manifest.parquet", rows)
    assert again(tmp_path, aligned, weights) == 1
    torch.manual_seed(1)
    save_file(IResNet(LAYERS, WIDTHS, quality_head=True).state_dict(), recogniser)
    assert again(tmp_path, aligned, weights) == 5


def test_another_code_of_the_extractor_extracts_again(
    tmp_path, aligned, recogniser, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "pipeline_steps"
    shutil.copytree(code.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", package)
    weights = entry("quality", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    out = tmp_path / "quality.safetensors"

    def extract() -> tuple[int, np.ndarray]:
        forget_code()
        frozen = Frozen("t", "features", 0, FeaturesSettings(), {"extractor": weights})
        frozen = replace(frozen, code=code.code_hash(*code_of("features")))
        count = features.run([frozen], aligned=aligned, out=[out], device="cpu")[0]
        return count, load_features(out).features

    count, first = extract()
    assert count == 5
    source = package / "faces" / "extractors.py"
    written = source.read_text("utf-8")
    start = written.index("def _quality(")
    source.write_text(f"{written[:start]}# A remark changes nothing.\n{written[start:]}")
    assert extract()[0] == 0
    # The quality of an image is now twice what it was.
    body = written[start:].replace("recogniser.quality(", "2.0 * recogniser.quality(", 1)
    assert body != written[start:]
    source.write_text(written[:start] + body)
    monkeypatch.setattr(Recogniser, "quality", doubled(Recogniser.quality))
    count, second = extract()
    assert count == 5
    np.testing.assert_allclose(second, 2.0 * first, rtol=1e-6)
    forget_code()


def forget_code() -> None:
    """Empty what is remembered of the package's source."""
    for remembered in vars(code).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


def doubled(function: Any) -> Any:
    return lambda *arguments: 2.0 * function(*arguments)


def test_equal_images_are_extracted_once_and_a_broken_store_is_no_loss(
    tmp_path, aligned, recogniser
):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    rows = read_manifest(aligned / "manifest.parquet").to_dict("records")
    write_png(aligned / "ID_1/2.png", IMAGES[0])
    rows[3]["landmarks"] = rows[1]["landmarks"]
    write_manifest(aligned / "manifest.parquet", rows)
    assert again(tmp_path, aligned, weights) == 4
    found = load_features(tmp_path / "features" / f"{weights.name}.safetensors")
    np.testing.assert_array_equal(found.features[0], found.features[2])
    (tmp_path / "features" / f".{weights.name}.safetensors").write_bytes(b"broken")
    assert again(tmp_path, aligned, weights) == 4


def test_rows_are_kept_while_a_long_extraction_runs(tmp_path, aligned, recogniser, monkeypatch):
    monkeypatch.setattr(feature_store, "FLUSH", 2)
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    write_png(aligned / "ID_1/4.png", IMAGES[0, :64, :64])  # the last one stops the run
    unchecked = FeaturesSettings(check_colour=False)
    frozen = Frozen("t", "features", 0, unchecked, {"extractor": weights})
    out = tmp_path / "features" / f"{weights.name}.safetensors"
    with pytest.raises(StepError, match="64x64"):
        features.run([frozen], aligned=aligned, out=[out], device="cpu", batch_size=2)
    write_png(aligned / "ID_1/4.png", IMAGES[4])
    assert again(tmp_path, aligned, weights) == 1


def test_a_set_in_bgr_is_refused_unless_the_study_says_otherwise(tmp_path, aligned):
    rows = []
    for index in range(10):
        skin = np.full((112, 112, 3), (90, 120, 150 + index), np.uint8)
        write_png(aligned / f"ID_1/{index}.png", skin)
        landmarks = ARCFACE_TEMPLATE.ravel()
        rows.append(
            {"identity": "ID_1", "file": f"ID_1/{index}.png", "landmarks": landmarks, "kept": True}
        )
    write_manifest(aligned / "manifest.parquet", rows)
    pose = entry("pose", "landmarks", "none")
    with pytest.raises(StepError, match=r"aligned: 10 of 10 coloured faces .* look like BGR"):
        extracted(tmp_path, aligned, pose)
    trusting = FeaturesSettings(check_colour=False)
    frozen = Frozen("t", "features", 0, trusting, {"extractor": pose})
    assert features.run(
        [frozen], aligned=aligned, out=[tmp_path / "f.safetensors"], device="cpu"
    ) == [10]


def test_a_set_without_a_face_has_no_rows(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    row = {"identity": "a", "file": None, "landmarks": None, "kept": False}
    write_manifest(aligned / "manifest.parquet", [row])
    for _ in range(2):  # the second run finds the first one's
        assert extracted(tmp_path, aligned, weights).files == []


def test_what_is_wrong_is_named(tmp_path, aligned, recogniser):
    weights = entry("recogniser", "iresnet", recogniser, layers=LAYERS, widths=WIDTHS)
    write_png(aligned / "ID_1/0.png", IMAGES[0, :64, :64])
    with pytest.raises(StepError, match="64x64 pixels, expected 112x112"):
        extracted(tmp_path, aligned, weights)
    (aligned / "ID_1/0.png").unlink()
    with pytest.raises(StepError, match=r"ID_1/0\.png cannot be read"):
        extracted(tmp_path, aligned, weights)
    frozen = Frozen("t", "features", 0, FeaturesSettings())
    with pytest.raises(StepError, match="role extractor"):
        features.run([frozen], aligned=aligned, out=[tmp_path / "f"], device="cpu")


def test_command_line(tmp_path, aligned):
    config = tmp_path / "features.json"
    frozen = {"study": "t", "step": "features", "seed": 0, "settings": {}, "variant": {}}
    weights = {"extractor": entry("pose", "landmarks", "none").model_dump()}
    config.write_text(json.dumps(frozen | {"weights": weights}))
    out = tmp_path / "pose.safetensors"
    arguments = ["--config", str(config), "--aligned", str(aligned), "--out", str(out)]
    assert features.main(arguments) == 0
    assert load_features(out).features.shape == (5, 3)
    with pytest.raises(StepError, match="2 configurations but 1 files"):
        features.main(["--config", str(config), *arguments[1:]])
    other = tmp_path / "other.safetensors"
    arguments = ["--config", str(config), str(config), "--aligned", str(aligned)]
    assert features.main([*arguments, "--out", str(out), str(other)]) == 0
    assert other.read_bytes() == out.read_bytes()
