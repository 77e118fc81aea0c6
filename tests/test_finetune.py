"""The finetune step: shares, content keys, failures of single identities, the real networks."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.random_models import write_random_pipeline
from pipeline_steps import finetune, prior
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.diffusion import ChoiceSettings, FinetuneSettings, PriorSettings
from tests.diffusion.tiny_study import (
    SIDE,
    EveryFace,
    base_weights,
    recogniser_weights,
    replace_image,
    write_dataset,
    write_frozen,
)

COUNTS = {"ID_1": 3, "ID_2": 2, "ID_10": 4}
SETTINGS = FinetuneSettings(steps=3, learning_rate=1e-2, rank=2, alpha=2.0)
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    folder = tmp_path_factory.mktemp("weights")
    return {
        "base_model": base_weights(write_random_pipeline(folder / "tiny")),
        "recogniser": recogniser_weights(folder),
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Weights]) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_dataset(folder / "dataset", COUNTS, weights["recogniser"])
    settings = {"images": 4, "steps": 2}
    config = write_frozen(folder / "prior.json", settings, weights, {"base_model": "tiny"})
    prior.run(load_frozen(config, PriorSettings), out=folder / "prior", guide=EveryFace())
    return folder


@pytest.fixture
def dataset(inputs: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(inputs / "dataset", tmp_path / "dataset"))


Train = Callable[..., dict[str, str]]


@pytest.fixture
def train(weights: dict[str, Weights], inputs: Path, dataset: Path, tmp_path: Path) -> Train:
    def call(
        method: str = "idbooth",
        out: str = "out",
        settings: FinetuneSettings = SETTINGS,
        **more: Any,
    ) -> dict[str, str]:
        frozen = Frozen(
            "test",
            "finetune",
            7,
            settings.resolved("tiny", method),
            weights,
            {"base_model": "tiny", "method": method},
        )
        options: dict[str, Any] = {"guide": EveryFace(), "at_once": 3} | more
        return finetune.run(
            frozen,
            **{"dataset": dataset, "prior": inputs / "prior", "out": tmp_path / out} | options,
        )

    return call


def written(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Identity to time and content of its weights."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob(LORA)
    }


def test_a_share_writes_weights_record_and_summary(train: Train, tmp_path: Path) -> None:
    keys = train()
    assert list(keys) == ["ID_1", "ID_2", "ID_10"]
    summary = json.loads((tmp_path / "out/shares/0-of-1.json").read_text())
    assert {identity: entry["key"] for identity, entry in summary.items()} == keys
    record = json.loads((tmp_path / "out/ID_2/training.json").read_text())
    assert record["key"] == keys["ID_2"]
    assert record["settings"]["margin"] == 1.0
    assert [len(values) for values in record["losses"].values()] == [3] * 4
    assert record["losses"]["face_found"] == [1.0] * 3
    assert min(record["losses"]["identity"]) > 0
    tensors = load_file(tmp_path / "out/ID_2" / LORA)
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_the_division_into_shares_and_fleets_changes_no_weights(
    train: Train, tmp_path: Path
) -> None:
    train(out="whole")
    for share in range(2):
        train(out="parts", share=share, shares=2, at_once=1)
    whole, parts = written(tmp_path / "whole"), written(tmp_path / "parts")
    assert set(whole) == set(parts) == set(COUNTS)
    for identity in COUNTS:
        a = load_file(tmp_path / "whole" / identity / LORA)
        b = load_file(tmp_path / "parts" / identity / LORA)
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-5)
    assert {path.name for path in (tmp_path / "parts/shares").iterdir()} == {
        "0-of-2.json",
        "1-of-2.json",
    }


def test_finished_identities_are_kept_until_their_inputs_change(
    train: Train, weights: dict[str, Weights], dataset: Path, tmp_path: Path
) -> None:
    train()
    before = written(tmp_path / "out")
    train(share=0, shares=2, at_once=1)
    assert written(tmp_path / "out") == before

    write_dataset(dataset, COUNTS | {"ID_2": 3, "ID_11": 2}, weights["recogniser"])
    train()
    after = written(tmp_path / "out")
    assert set(after) == {*COUNTS, "ID_11"}
    assert after["ID_2"] != before["ID_2"]
    assert after["ID_1"] == before["ID_1"]
    assert after["ID_10"] == before["ID_10"]

    train(settings=SETTINGS.model_copy(update={"margin": 0.5}))
    assert all(written(tmp_path / "out")[identity] != after[identity] for identity in after)


def test_what_a_method_does_not_use_reruns_nothing(
    train: Train, dataset: Path, tmp_path: Path
) -> None:
    train("dreambooth", guide=None)
    before = written(tmp_path / "out")
    shutil.rmtree(dataset / "embeddings")
    changed = SETTINGS.model_copy(update={"margin": 0.5, "identity_weight": 3.0})
    train("dreambooth", settings=changed, guide=None)
    assert written(tmp_path / "out") == before


def test_weights_that_were_cut_short_are_trained_again(train: Train, tmp_path: Path) -> None:
    train("dreambooth")
    before = written(tmp_path / "out")
    path = tmp_path / "out/ID_1" / LORA
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "out/ID_2/training.json").write_text("{")
    train("dreambooth")
    after = written(tmp_path / "out")
    assert {identity: content for identity, (_, content) in after.items()} == {
        identity: content for identity, (_, content) in before.items()
    }
    assert after["ID_10"] == before["ID_10"]


class AsksToStop(EveryFace):
    """Sees faces, and sends this process a signal at a chosen call."""

    def __init__(self, call: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.call = call
        self.number = number

    def boxes(self, images: torch.Tensor) -> list[np.ndarray | None]:
        self.call -= 1
        if self.call == 0:
            signal.raise_signal(self.number)
        return super().boxes(images)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_next_run_ends_bit_for_bit_as_without(
    train: Train, tmp_path: Path, number: signal.Signals
) -> None:
    train(out="whole", at_once=2)
    with pytest.raises(Interrupted, match=rf"{number.name}: .* step 2 of 3; run again"):
        train(at_once=2, guide=AsksToStop(2, number))
    assert not written(tmp_path / "out")
    assert len(list((tmp_path / "out/checkpoints").rglob("*.safetensors"))) == 2
    train(at_once=2)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (
            path.read_bytes()
            == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
        )
    assert not (tmp_path / "out/checkpoints").exists()


def test_an_interrupted_identity_goes_on_in_a_share_of_others(
    train: Train, weights: dict[str, Weights], dataset: Path, tmp_path: Path
) -> None:
    write_dataset(dataset, COUNTS | {"ID_11": 2}, weights["recogniser"])
    train(out="whole")
    with pytest.raises(Interrupted):
        train(share=0, shares=2, guide=AsksToStop(2))
    faces = EveryFace()
    train(guide=faces)
    assert faces.seen == 2 * 1 + 2 * 3  # ID_1 and ID_10 had one step to go, the others three
    for identity in (*COUNTS, "ID_11"):
        a = load_file(tmp_path / "whole" / identity / LORA)
        b = load_file(tmp_path / "out" / identity / LORA)
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_other_settings_is_never_resumed(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(guide=AsksToStop(2))
    changed = SETTINGS.model_copy(update={"learning_rate": 2e-2})
    faces = EveryFace()
    train(settings=changed, guide=faces)
    assert faces.seen == 3 * 3
    assert not (tmp_path / "out/checkpoints").exists()


def test_results_that_could_not_be_written_are_written_later_without_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline_steps.finetune._save", killed)
        with pytest.raises(Killed):
            train()
    faces = EveryFace()
    train(guide=faces)
    assert faces.seen == 0
    assert set(written(tmp_path / "out")) == set(COUNTS)


class NoNumber(EveryFace):
    """Embeds the second of two images, which is ID_2's, as NaN."""

    def embed(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        rows = super().embed(images, boxes)
        return rows * torch.tensor([1.0, torch.nan])[: len(rows), None]


def test_one_that_diverges_stops_no_other_and_leaves_no_state(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"1 of 3 .*ID_2: training diverged"):
        train(guide=NoNumber())
    assert set(written(tmp_path / "out")) == {"ID_1", "ID_10"}
    assert not (tmp_path / "out/checkpoints").exists()


def test_the_chosen_step_is_kept_and_an_interruption_changes_nothing(
    train: Train, tmp_path: Path
) -> None:
    choice = ChoiceSettings(steps=(1,), held_out=1, images=2, sampling_steps=2)
    long = SETTINGS.model_copy(update={"choice": choice, "schedule": "constant"})
    with pytest.raises(Interrupted, match="step 1 of 3"):
        # One detection per identity and trial: the fifth belongs to the trial of step 1.
        train("dreambooth", settings=long, guide=AsksToStop(5))
    train("dreambooth", settings=long)
    train("dreambooth", out="short", settings=long.model_copy(update={"steps": 1}))
    for identity in COUNTS:
        folder, short = tmp_path / "out" / identity, tmp_path / "short" / identity
        record = json.loads((folder / "training.json").read_text())
        expected = json.loads((short / "training.json").read_text())["choice"]
        assert record["choice"] == expected
        assert [trial["step"] for trial in expected["trials"]] == [0, 1]
        assert expected["chosen"] == 1 and len(expected["held_out"]) == 1
        assert len(record["images"]) == COUNTS[identity] - 1
        assert not set(expected["held_out"]) & set(record["images"])
        assert [len(values) for values in record["losses"].values()] == [3] * 4
        assert (folder / LORA).read_bytes() == (short / LORA).read_bytes()
        assert "step 1 is kept" in (folder / "choice.svg").read_text()


def test_one_identity_that_cannot_be_trained_stops_no_other_and_is_named(
    train: Train, weights: dict[str, Weights], dataset: Path, tmp_path: Path
) -> None:
    write_dataset(dataset, COUNTS | {"ID_3": 0}, weights["recogniser"])
    (dataset / "images/ID_1/0.png").write_bytes(b"broken")
    replace_image(dataset, "images/ID_2/0.png", np.zeros((32, 40, 3), dtype=np.uint8))
    with pytest.raises(StepError) as caught:
        train()
    message = str(caught.value)
    assert "3 of 4" in message
    assert all(f"{identity}:" in message for identity in ("ID_1", "ID_2", "ID_3"))
    assert "no usable image" in message and "not square" in message
    assert set(written(tmp_path / "out")) == {"ID_10"}
    assert not (tmp_path / "out/shares").exists()


def test_missing_embeddings_are_named(train: Train, dataset: Path) -> None:
    (dataset / "embeddings/ID_1.safetensors").unlink()
    with pytest.raises(StepError, match=r"ID_1: .*embeddings"):
        train("portraitbooth")


@pytest.mark.parametrize(
    ("whose", "settings"),
    [
        ("dataset/embeddings/ID_1.safetensors", SETTINGS),
        ("prior/embeddings.safetensors", SETTINGS),
        (
            "dataset/embeddings/ID_1.safetensors",
            SETTINGS.model_copy(update={"choice": ChoiceSettings(held_out=1, steps=(1,))}),
        ),
    ],
)
def test_embeddings_by_another_network_are_refused(
    train: Train,
    weights: dict[str, Weights],
    inputs: Path,
    dataset: Path,
    tmp_path: Path,
    whose: str,
    settings: FinetuneSettings,
) -> None:
    place, _, file = whose.partition("/")
    folder = (
        dataset if place == "dataset" else Path(shutil.copytree(inputs / place, tmp_path / "p"))
    )
    found = load_features(folder / file, key="embeddings")
    header = found.metadata | {"weights_sha256": "0" * 64}
    save_features(folder / file, found.features, found.files, key="embeddings", **header)
    prior_set = inputs / "prior" if place == "dataset" else folder
    with pytest.raises(StepError, match=rf"{file} was not made by the network .*weights sha256"):
        train(settings=settings, prior=prior_set)


def test_images_of_another_size_are_resized(train: Train, dataset: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(5).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    small = Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    results = []
    for image in (large, np.asarray(small), large[:SIDE, :SIDE]):
        replace_image(dataset, "images/ID_1/0.png", image)
        train("dreambooth", at_once=1)
        results.append({name: content for name, (_, content) in written(tmp_path / "out").items()})
    resized, made_small, cut = results
    assert set(resized) == set(COUNTS)
    assert resized == made_small
    assert {name for name in COUNTS if resized[name] != cut[name]} == {"ID_1"}


def test_the_command_line_runs_the_real_detector_and_recogniser(
    weights: dict[str, Weights], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS.resolved("tiny", "idbooth").model_dump(mode="json")
    variant = {"base_model": "tiny", "method": "idbooth"}
    config = write_frozen(tmp_path / "idbooth.json", settings, weights, variant)
    common = ["--config", str(config), "--prior", str(inputs / "prior")]
    data = ["--dataset", str(inputs / "dataset"), "--out", str(tmp_path / "out")]
    arguments = [*common, *data, "--share", "0", "--shares", "3"]
    assert run_main(lambda: finetune.main(arguments)) == 0
    assert set(written(tmp_path / "out")) == {"ID_1"}
    assert "step 3/3" in capsys.readouterr().err
    assert run_main(lambda: finetune.main([*arguments[:-3], "5", "--shares", "3"])) == 2
    assert "share 5 of 3" in capsys.readouterr().err


def test_settings_resolve_by_base_model_and_method() -> None:
    settings = FinetuneSettings(overrides={"sdxl": {"steps": 1000}})
    assert settings.resolved("sd21", "idbooth").steps == 6400
    assert settings.resolved("sdxl", "idbooth").steps == 1000
    assert settings.for_method("portraitbooth").margin is None
    assert settings.for_method("dreambooth").identity_weight is None
    assert settings.for_method("idbooth").margin == 1.0
    with pytest.raises(ValueError, match="stepps"):
        FinetuneSettings(overrides={"sdxl": {"stepps": 1}}).resolved("sdxl", "idbooth")
    with pytest.raises(ValueError, match="token"):
        FinetuneSettings(instance_prompt="photo of a person")


def test_instance_prompts_may_name_the_gender() -> None:
    plain = FinetuneSettings()
    assert plain.instance_prompt_for("F") == "photo of sks person"
    worded = FinetuneSettings(instance_prompt="photo of {gender} {token} person")
    assert worded.instance_prompt_for("F") == "photo of female sks person"
    assert worded.instance_prompt_for(None) == "photo of sks person"
