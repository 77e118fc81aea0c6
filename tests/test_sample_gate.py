"""The sample step with a gate: unusable images are made again, and every attempt is a row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import align, sample
from pipeline_steps.diffusion.sampling.gate import Measured
from pipeline_steps.diffusion.sampling.plan import keys_of
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import (
    GateSettings,
    IdentityGuidanceSettings,
    SampleSettings,
    read_prompt_set,
)
from tests.diffusion.tiny_study import base_weights, recogniser_weights, write_dataset

PROMPTS = Path(__file__).parents[1] / "config" / "prompts"
GATE = GateSettings(attempts=3, min_quality=0.0)


class OddPixels:
    """A face where the sum of the pixels is odd; quality is the sum's third lowest bit."""

    def __init__(self, blind: str = "") -> None:
        self.blind = blind
        self.measured = 0

    def measure(self, identity: str, images: np.ndarray) -> list[Measured]:
        self.measured += len(images)
        sums = images.reshape(len(images), -1).astype(int).sum(1)
        return [
            Measured(True, None, float((total >> 2) % 2))
            if total % 2 and identity != self.blind
            else Measured(False)
            for total in sums
        ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    entry = base_weights(write_random_pipeline(tmp_path_factory.mktemp("weights") / "tiny"))
    return {"base_model": entry, "quality": entry}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"ID_1": 1, "ID_2": 1})


def draw(
    weights: dict[str, Weights],
    dataset: Path,
    out: Path,
    gate: GateSettings | None,
    measure: OddPixels | None,
    **more: Any,
) -> list[dict[str, Any]]:
    settings = SampleSettings(images_per_identity=5, steps=1, gate=gate)
    frozen = Frozen(
        "test",
        "sample",
        7,
        settings.with_prompts(read_prompt_set(PROMPTS / "complex.yaml")),
        weights,
        {"base_model": "tiny", "method": "untuned", "prompts": "complex"},
    )
    return sample.run(frozen, dataset=dataset, out=out, measure=measure, **more)


def sampled(out: Path) -> dict[str, str]:
    return {p.relative_to(out).as_posix(): sha256_file(p) for p in sorted(out.rglob("*.png"))}


def test_unusable_images_are_made_again_and_told(
    weights: dict[str, Weights],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ungated = draw(weights, dataset, tmp_path / "all", None, None)
    rows = draw(weights, dataset, tmp_path / "out", GATE, OddPixels(blind="ID_2"))
    kept = [row for row in rows if row["kept"]]
    assert {row["file"]: row["sha256"] for row in kept} == sampled(tmp_path / "out")
    assert all(
        row["file"] is None and row["reason"] == "no face" for row in rows if not row["kept"]
    )
    assert Counter(row["attempt"] for row in rows if row["identity"] == "ID_2") == {
        0: 5,
        1: 5,
        2: 5,
    }
    assert "fewer than 5 usable images after 3 attempts" in capsys.readouterr().err

    # The first attempt is the ungated study's; a further one has a seed of its own, same prompt.
    first = {(r["identity"], r["index"]): r for r in rows if r["attempt"] == 0}
    assert [first[r["identity"], r["index"]]["seed"] for r in ungated] == [
        r["seed"] for r in ungated
    ]
    same = [r for r in kept if r["attempt"] == 0]
    assert same and all(sha256_file(tmp_path / "all" / r["file"]) == r["sha256"] for r in same)
    assert len({r["seed"] for r in rows}) == len(rows)
    again = [r for r in rows if r["attempt"] > 0 and r["identity"] == "ID_1"]
    assert again and all(r["prompt"] == first["ID_1", r["index"]]["prompt"] for r in again)
    assert all(r["quality"] is not None for r in kept)

    manifest = read_manifest(tmp_path / "out/shares/0-of-1.parquet", ["attempt", "kept", "reason"])
    inputs = align.inputs_of_manifest(tmp_path / "out/shares/0-of-1.parquet")
    assert len(manifest) == len(rows) and len(inputs) == len(kept)


def test_a_gate_that_changes_samples_only_what_it_must(
    weights: dict[str, Weights], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    draw(weights, dataset, out, None, None)
    whole = sampled(out)
    measure = OddPixels()
    loose = draw(weights, dataset, out, GATE, measure)
    usable = {r["file"] for r in loose if r["kept"] and r["attempt"] == 0}
    assert usable and all(sampled(out)[file] == whole[file] for file in usable)

    again = OddPixels()
    assert draw(weights, dataset, out, GATE, again) == loose
    assert again.measured == 0  # nothing is sampled or measured twice
    edited = GATE.model_copy(update={"code": "edited"})
    assert draw(weights, dataset, out, edited, again) == loose
    assert again.measured > 0

    strict_gate = GATE.model_copy(update={"min_quality": 0.5})
    strict = draw(weights, dataset, out, strict_gate, again)
    fresh = draw(weights, dataset, tmp_path / "fresh", strict_gate, OddPixels())
    assert strict == fresh
    assert sampled(out) == sampled(tmp_path / "fresh")
    assert {"low quality"} <= {row["reason"] for row in strict}

    assert draw(weights, dataset, out, GATE, OddPixels()) == loose
    draw(weights, dataset, out, None, None)
    assert sampled(out) == whole


def test_identity_guidance_is_part_of_a_samples_key_where_it_is_asked_for(
    weights: dict[str, Weights], tmp_path: Path
) -> None:
    settings = SampleSettings().with_prompts(read_prompt_set(PROMPTS / "complex.yaml"))
    judge = {"recogniser": recogniser_weights(tmp_path)}
    variant = {"base_model": "tiny", "method": "idbooth", "prompts": "complex"}
    rows = [{"identity": "ID_1", "index": 0}]

    def key(guidance: IdentityGuidanceSettings | None, faces: str | None, **more: Weights) -> str:
        led = settings.model_copy(update={"identity_guidance": guidance})
        frozen = Frozen("test", "sample", 7, led, weights | more, variant)
        return keys_of(frozen, rows, None if faces is None else {"ID_1": faces})[0]

    light, strong = (IdentityGuidanceSettings(weight=weight) for weight in (1, 2))
    plain = key(None, None)
    assert plain == key(None, None, **judge)  # who measures is no part of it
    led = [key(light, "a", **judge), key(strong, "a", **judge), key(light, "b", **judge)]
    assert len({plain, *led}) == 4


def test_guided_samples_need_the_photographs_embeddings(
    weights: dict[str, Weights], tmp_path: Path
) -> None:
    judge = recogniser_weights(tmp_path)
    settings = SampleSettings(
        images_per_identity=1, steps=2, identity_guidance=IdentityGuidanceSettings()
    )
    frozen = Frozen(
        "test",
        "sample",
        7,
        settings.with_prompts(read_prompt_set(PROMPTS / "complex.yaml")),
        weights | {"recogniser": judge},
        {"base_model": "tiny", "method": "untuned", "prompts": "complex"},
    )
    people = write_dataset(tmp_path / "data", {"ID_1": 2}, judge)
    assert len(sample.run(frozen, dataset=people, out=tmp_path / "out")) == 1
    assert sampled(tmp_path / "out")
    foreign = write_dataset(tmp_path / "foreign", {"ID_1": 2})
    with pytest.raises(StepError, match="embeddings"):
        sample.run(frozen, dataset=foreign, out=tmp_path / "other")
