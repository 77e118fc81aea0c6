"""What the gate measures on rendered faces, and its decisions."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.demo_world.rendering.population import HELD_OUT, person, wild_nuisance
from pipeline_steps.diffusion.sampling.gate import (
    FaceMeasure,
    Gate,
    Measured,
    gate_of,
    reason_against,
)
from pipeline_steps.embed import embed_images
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.recogniser import embedded_by, load_recogniser
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.io.tensors import save_features
from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import AlignSettings
from pipeline_steps.study.settings.sampling import GateSettings, SampleSettings
from tests.diffusion.tiny_study import recogniser_weights
from tests.registry import entry

SUBJECTS = [Subject("ID_1", None, (), ()), Subject("ID_2", None, (), ())]


def photographs(number: int, count: int, first: int = 0) -> np.ndarray:
    made = [
        person(0, HELD_OUT, number).photograph(
            wild_nuisance(0, HELD_OUT, number, index), 128, supersample=1
        )
        for index in range(first, first + count)
    ]
    return np.stack([photo.image for photo in made])


def frozen(method: str, gate: GateSettings) -> Frozen[SampleSettings]:
    models = read_models(PROJECT_ROOT / "config" / "models.yaml")
    return Frozen(
        "test",
        "sample",
        0,
        SampleSettings(gate=gate),
        {
            "recogniser": models["demo_recogniser"],
            "quality": models["demo_quality"],
            "base_model": models["demo"],
        },
        {"method": method},
    )


HEADER = embedded_by(frozen("idbooth", GateSettings()).weights["recogniser"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of two people, made as the embed step makes them."""
    folder = tmp_path_factory.mktemp("dataset")
    recogniser = load_recogniser(frozen("idbooth", GateSettings()).weights["recogniser"])
    for number, subject in enumerate(SUBJECTS):
        _, rows = embed_images(list(photographs(number, 3)), [None] * 3, Detector(), recogniser)
        names = [f"{i}.png" for i in range(len(rows))]
        path = folder / "embeddings" / f"{subject.identity}.safetensors"
        save_features(path, rows, names, key="embeddings", **HEADER)
    return folder


def test_the_gate_knows_faces_people_and_quality(dataset: Path) -> None:
    gate = GateSettings(min_similarity=0.2, min_quality=0.0)
    measure = FaceMeasure(frozen("idbooth", gate), dataset, SUBJECTS, "cpu")
    images = photographs(0, 3, first=10)
    noise = np.random.default_rng(0).integers(0, 256, images[:1].shape, dtype=np.uint8)
    *faces, nothing = measure.measure("ID_1", np.concatenate([images, noise]))
    others = measure.measure("ID_2", images)
    assert nothing == Measured(False)
    assert all(seen.face and seen.quality is not None for seen in faces)
    for own, other in zip(faces, others, strict=True):
        assert own.similarity is not None and other.similarity is not None
        assert own.similarity > other.similarity + 0.2
        assert own.quality == pytest.approx(other.quality, abs=1e-5)


def test_the_untuned_model_is_not_asked_for_an_identity(dataset: Path) -> None:
    untuned = frozen("untuned", GateSettings(min_similarity=0.9))
    assert gate_of(untuned).min_similarity is None
    [seen] = FaceMeasure(untuned, dataset, SUBJECTS, "cpu").measure("ID_1", photographs(0, 1))
    assert seen == Measured(True, None, None)
    assert Gate(untuned, dataset, SUBJECTS, "cpu").reason_against(asdict(seen)) == ""


def test_similarity_is_that_of_the_embed_step_whatever_the_recognisers_input(
    tmp_path: Path,
) -> None:
    weights = recogniser_weights(tmp_path, input_size=64)
    base_model = entry("base_model", "stable-diffusion", tmp_path, resolution=64)
    gate = GateSettings(min_similarity=0.0, align=AlignSettings(padding=0.0))
    found = gate.align.detector
    images = photographs(0, 3)
    detector = Detector("cpu", found.min_face_size, found.thresholds)
    where, rows = embed_images(list(images), [None] * 3, detector, load_recogniser(weights))
    assert where
    path = tmp_path / "embeddings" / "ID_1.safetensors"
    names = [f"{i}.png" for i in where]
    save_features(path, rows, names, key="embeddings", **embedded_by(weights))
    measure = FaceMeasure(
        replace(frozen("idbooth", gate), weights={"recogniser": weights, "base_model": base_model}),
        tmp_path,
        SUBJECTS[:1],
        "cpu",
    )
    centre = rows.mean(0) / np.linalg.norm(rows.mean(0))
    measured = [seen.similarity for seen in measure.measure("ID_1", images[where])]
    assert measured == pytest.approx((rows @ centre).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (Measured(False), "no face"),
        (Measured(True, 0.5, 1.0), ""),
        (Measured(True, 0.29, 1.0), "low similarity"),
        (Measured(True, 0.3, 0.9), "low quality"),
        (Measured(True, None, 1.0), "low similarity"),
        (Measured(True, math.nan, 1.0), "low similarity"),
        (Measured(True, 0.5, math.nan), "low quality"),
    ],
)
def test_decisions_follow_from_what_was_measured(measured: Measured, reason: str) -> None:
    gate = GateSettings(min_similarity=0.3, min_quality=1.0)
    assert reason_against(measured, gate) == reason


def test_nobody_resembles_an_identity_without_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "embeddings" / "ID_1.safetensors"
    save_features(path, np.zeros((0, 512), dtype=np.float32), [], key="embeddings", **HEADER)
    gate = Gate(frozen("idbooth", GateSettings(min_similarity=-1)), tmp_path, SUBJECTS[:1], "cpu")
    [facts] = gate.measure("ID_1", photographs(0, 1))
    assert facts == {"face": True, "similarity": None, "quality": None}
    assert gate.reason_against(facts) == "low similarity"


def test_embeddings_by_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "embeddings" / "ID_1.safetensors"
    header = HEADER | {"preprocessing": "BGR"}
    save_features(path, np.eye(1, 512, dtype=np.float32), ["0"], key="embeddings", **header)
    asked = frozen("idbooth", GateSettings(min_similarity=0.1))
    with pytest.raises(StepError, match=r"ID_1\.safetensors was not made .* preprocessing BGR"):
        FaceMeasure(asked, tmp_path, SUBJECTS[:1], "cpu")


def test_thresholds_need_no_new_measurement_and_new_photographs_do(dataset: Path) -> None:
    def key(method: str = "idbooth", **options: float) -> str:
        asked = frozen(method, GateSettings(**options))
        return Gate(asked, dataset, SUBJECTS[:1], "cpu").keys["ID_1"]

    assert key(min_similarity=0.1) == key(min_similarity=0.5)
    assert len({key(), key(min_similarity=0.1), key(min_quality=0.1)}) == 3
    assert key("untuned", min_similarity=0.1) == key()
    before = key(min_similarity=0.1)
    path = dataset / "embeddings" / "ID_1.safetensors"
    old = path.read_bytes()
    save_features(path, np.eye(3, 128, dtype=np.float32), ["0", "1", "2"], key="embeddings")
    assert key(min_similarity=0.1) != before
    path.write_bytes(old)
