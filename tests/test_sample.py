"""The sample step: paired prompts and noise, resume by image, manifests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import sample
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.lora import AdapterBank, save_lora
from pipeline_steps.diffusion.sampling.plan import COLUMNS, check_base_model
from pipeline_steps.identities.dataset import read_subjects
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import SampleSettings, read_prompt_set
from tests.diffusion.tiny_study import base_weights, write_dataset, write_frozen

PROMPTS = Path(__file__).parents[1] / "config" / "prompts"
COUNTS = {"ID_1": 1, "ID_2": 1, "ID_10": 1}
SETTINGS = SampleSettings(images_per_identity=4, steps=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    folder = tmp_path_factory.mktemp("weights")
    return {"base_model": base_weights(write_random_pipeline(folder / "tiny"))}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Weights]) -> Path:
    """A dataset and strong random adapters."""
    folder = tmp_path_factory.mktemp("inputs")
    write_dataset(folder / "dataset", COUNTS)
    base = load_base_model(weights["base_model"])
    bank = AdapterBank(base.unet, count=3, rank=2, alpha=4.0, targets=("to_q", "to_v"))
    with torch.no_grad():
        bank.weights.normal_(std=0.4, generator=torch.Generator().manual_seed(0))
    for k, identity in enumerate(COUNTS):
        to = folder / "loras" / identity
        path = save_lora(to, bank.adapter(k), rank=2, alpha=4.0, targets=("to_q", "to_v"))
        record = {"settings": {"token": "sks"}, "weights_sha256": sha256_file(path)}
        (to / "training.json").write_text(json.dumps(record))
    return folder


Sample = Callable[..., pd.DataFrame]


@pytest.fixture
def sampled(weights: dict[str, Weights], inputs: Path, tmp_path: Path) -> Sample:
    def call(
        method: str = "idbooth",
        prompts: str = "complex",
        out: str = "out",
        settings: SampleSettings = SETTINGS,
        **more: Any,
    ) -> pd.DataFrame:
        frozen = Frozen(
            "test",
            "sample",
            7,
            settings.with_prompts(read_prompt_set(PROMPTS / f"{prompts}.yaml")),
            weights,
            {"base_model": "tiny", "method": method, "prompts": prompts},
        )
        options: dict[str, Any] = {
            "dataset": inputs / "dataset",
            "loras": None if method == "untuned" else inputs / "loras",
            "out": tmp_path / out,
        }
        rows = sample.run(frozen, **(options | more))
        return pd.DataFrame(rows)

    return call


def times(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*.png")
    }


def test_the_manifest_tells_each_image(sampled: Sample, tmp_path: Path) -> None:
    sampled()
    manifest = read_manifest(tmp_path / "out/shares/0-of-1.parquet")
    assert list(manifest.columns) == list(COLUMNS)
    assert list(zip(manifest["identity"], manifest["index"], strict=True)) == [
        (identity, index) for identity in COUNTS for index in range(4)
    ]
    for file, digest in zip(manifest["file"], manifest["sha256"], strict=True):
        assert sha256_file(tmp_path / "out" / file) == digest
        assert read_image(tmp_path / "out" / file).shape == (32, 32, 3)
    assert set(manifest["method"]) == {"idbooth"} and set(manifest["prompts"]) == {"complex"}
    assert manifest["seed"].is_unique
    assert manifest["weights_sha256"].nunique() == 3


def test_shards_hold_the_same_images_and_only_missing_ones_are_made(
    sampled: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = SETTINGS.model_copy(update={"images_per_identity": 2, "store": "shards"})
    sampled("untuned", out="shards", settings=few)
    caplog.clear()
    sampled("untuned", out="shards", settings=few.model_copy(update={"images_per_identity": 4}))
    assert "12 images wanted, 6 of them finished" in caplog.text
    assert not list((tmp_path / "shards").rglob("*.png"))
    sampled("untuned")
    manifests = [tmp_path / out / "shares/0-of-1.parquet" for out in ("out", "shards")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    for file in read_manifest(manifests[0])["file"]:
        images = [read_image(tmp_path / out / file) for out in ("out", "shards")]
        np.testing.assert_array_equal(*images)
    packed = times(tmp_path / "out")
    sampled("untuned", out="shards")
    assert times(tmp_path / "shards").keys() == packed.keys()


def test_images_are_led_away_from_another_persons_adapter_whatever_the_share(
    sampled: Sample, tmp_path: Path
) -> None:
    led = SETTINGS.model_copy(update={"negative_guidance": 0.5, "images_per_identity": 1})
    plain, whole = sampled(), sampled(out="led", settings=led)
    assert set(whole["away_from"]) == set(COUNTS) and "away_from" not in plain
    firsts = plain[plain["index"] == 0]
    assert list(firsts["seed"]) == list(whole["seed"])
    assert not set(firsts["sha256"]) & set(whole["sha256"])
    part = sampled(out="share", settings=led, shares=3, share=1)
    [own] = whole[whole["identity"] == part["identity"][0]].to_dict("records")
    images = [read_image(tmp_path / out / own["file"]) for out in ("led", "share")]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_methods_share_prompts_and_noise_and_differ_by_their_weights(
    sampled: Sample, tmp_path: Path
) -> None:
    tuned, untuned = sampled(out="tuned"), sampled("untuned", out="untuned")
    assert list(tuned["seed"]) == list(untuned["seed"])
    assert [text.replace("sks ", "") for text in tuned["prompt"]] == list(untuned["prompt"])
    assert list(tuned["negative_prompt"]) == list(untuned["negative_prompt"])
    images = [read_image(tmp_path / part / "ID_1/0.png") for part in ("tuned", "untuned")]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() > 5


def test_shares_and_batches_change_no_image(sampled: Sample, tmp_path: Path) -> None:
    whole = sampled(out="whole", batch_size=16)
    parts = [sampled(out="parts", share=k, shares=2, batch_size=3) for k in range(2)]
    columns = ["identity", "index", "prompt", "seed", "weights_sha256"]
    joined = pd.concat(parts).sort_values(["identity", "index"])[columns]
    expected = whole.sort_values(["identity", "index"])[columns]
    assert joined.to_dict("records") == expected.to_dict("records")
    for file in whole["file"]:
        a, b = (read_image(tmp_path / part / file).astype(int) for part in ("whole", "parts"))
        assert np.abs(a - b).max() <= 1


def test_finished_images_are_kept_and_lost_or_outdated_ones_made(
    sampled: Sample, tmp_path: Path
) -> None:
    first = sampled()
    before = times(tmp_path / "out")
    sampled()
    assert times(tmp_path / "out") == before

    (tmp_path / "out/ID_1/2.png").unlink()
    (tmp_path / "out/ID_2/0.png").write_bytes(b"broken")
    again = sampled()
    after = times(tmp_path / "out")
    changed = {file for file in after if after[file] != before.get(file)}
    assert changed == {"ID_1/2.png", "ID_2/0.png"}
    assert list(again["index"]) == list(first["index"])

    more = sampled(settings=SETTINGS.model_copy(update={"images_per_identity": 5}))
    assert len(more) == 15
    grown = times(tmp_path / "out")
    assert {file: grown[file] for file in after} == after

    sampled(settings=SETTINGS.model_copy(update={"guidance": 2.0}))
    assert all(times(tmp_path / "out")[file] != after[file] for file in after)


def test_images_of_one_colour_are_never_kept_and_many_of_them_end_the_step(
    sampled: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = BaseModel.decode

    def overflowing(base: BaseModel, latents: torch.Tensor) -> torch.Tensor:
        images = decode(base, latents)
        images[0, :, 5] = torch.nan
        return images

    monkeypatch.setattr(BaseModel, "decode", overflowing)  # one of each batch of 16
    rows = sampled(settings=SETTINGS.model_copy(update={"images_per_identity": 12}))
    blank = rows[~rows["kept"]]
    assert set(blank["reason"]) == {"one colour"} and blank["file"].isna().all()
    images = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.png")}
    assert images == set(rows.loc[rows["kept"], "file"]) and 0 < len(blank) < len(rows) / 2

    monkeypatch.setattr(BaseModel, "decode", lambda base, z: decode(base, z) * torch.nan)
    few = SETTINGS.model_copy(update={"images_per_identity": 1})
    for settings, out in ((few, "few"), (SETTINGS, "many")):
        with pytest.raises(StepError, match=r"one colour.* sample\.precision: fp32"):
            sampled(settings=settings, out=out)
        with pytest.raises(StepError, match="one colour"):  # not a second time either
            sampled(settings=settings, out=out)
        assert not list((tmp_path / out).rglob("*.png"))


def test_missing_or_foreign_weights_are_refused(
    sampled: Sample, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(StepError, match="ID_1"):
        sampled(loras=tmp_path)
    with pytest.raises(StepError, match="--loras"):
        sampled(loras=None)
    with pytest.raises(StepError, match="--loras"):
        sampled("untuned", loras=inputs / "loras")
    with pytest.raises(StepError, match="token 'sks'"):
        sampled(settings=SETTINGS.model_copy(update={"token": "olis"}))
    with pytest.raises(StepError, match="magicbooth"):
        sampled("magicbooth")


def test_adapters_of_another_base_model_are_refused_by_name_and_hash(
    weights: dict[str, Weights],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sampled: Sample,
) -> None:
    shutil.copytree(inputs / "loras", tmp_path / "loras")
    subjects, base = read_subjects(inputs / "dataset"), weights["base_model"]
    ours = base.model_copy(update={"sha256": {"unet/w": "a" * 64, "vae/w": "b" * 64}})

    def note(**theirs: Any) -> None:
        for path in (tmp_path / "loras").glob("*/training.json"):
            told = {"name": base.name, "sha256": ours.sha256} | theirs
            path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model": told}))

    def check(anyway: bool = False) -> str:
        capsys.readouterr()
        check_base_model(tmp_path / "loras", subjects, ours, anyway=anyway)
        return capsys.readouterr().err

    assert f"weights of ID_1, ID_2, ID_10 fit {base.name}" in check()  # no record tells
    note(name="the same under another name")
    assert check() == ""
    note(sha256={"unet/w": "c" * 64, "vae/w": "b" * 64})
    with pytest.raises(StepError, match=rf"ID_1 was .*'{base.name}' \(unet/w: c{{12}}, a{{12}}\)"):
        check()
    note(name="other", sha256={})
    with pytest.raises(StepError, match=r"for the base model 'other', .*--other-base-model"):
        check()
    assert "for the base model 'other'" in check(anyway=True)
    with pytest.raises(StepError, match="for the base model 'other'"):
        sampled(loras=tmp_path / "loras")


def test_the_command_line_samples_the_untuned_model(
    weights: dict[str, Weights], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS.with_prompts(read_prompt_set(PROMPTS / "base.yaml"))
    variant = {"base_model": "tiny", "method": "untuned", "prompts": "base"}
    config = write_frozen(
        tmp_path / "base.json", settings.model_dump(mode="json"), weights, variant
    )
    arguments = ["--config", str(config), "--dataset", str(inputs / "dataset")]
    arguments += ["--out", str(tmp_path / "out"), "--batch-size", "8"]
    assert run_main(lambda: sample.main(arguments)) == 0
    assert "12 images wanted, 0 of them finished" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "out/shares/0-of-1.parquet")
    assert set(manifest["prompt"]) == {"photo of person, close-up portrait"}
