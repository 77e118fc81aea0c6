"""The whole pretraining with tiny networks: it ends when asked, goes on, and leaves weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline_steps.demo_world import pretrain
from pipeline_steps.demo_world.pretrain import Call, main
from pipeline_steps.demo_world.pretraining import autoencoder, images, training
from pipeline_steps.demo_world.pretraining.plan import PLANS, RECOGNISERS, Amounts, Plan
from pipeline_steps.faces.extractors import AttributeNet
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError

SMALL = Amounts(images=8, batch=2, learning_rate=1e-3)
PLAN = Plan(
    seed=5,
    people=2,
    each=3,
    unseen=2,
    named=3,
    recognisers=RECOGNISERS,
    autoencoder=SMALL,
    recogniser=replace(SMALL, images=16, batch=8),
    attributes=SMALL,
    denoiser=SMALL,
    face_fusion=SMALL,
    id3=SMALL,
)


def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rendered photographs of the tiny plan; networks are tiny as long as this lives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "PEOPLE_PER_FILE", 2)
        patch.setattr(images, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(autoencoder, "network", tiny_autoencoder)
        patch.setitem(PLANS, "cpu", PLAN)
        folder = tmp_path_factory.mktemp("rendered")
        call = Call(PLAN, folder, folder / "none")
        for offset in (0, 1):
            for what in call.photographs(offset):
                assert call.render(what)
        yield folder / "photographs"


class InThisProcess:
    """A process pool without processes: starting them takes longer than the tiny work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


@pytest.fixture
def work(photographs: Path, tmp_path: Path) -> Path:
    (tmp_path / "photographs").symlink_to(photographs)
    return tmp_path


@pytest.fixture(scope="module")
def made(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything was trained."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photographs").symlink_to(photographs)
    assert main(["--work", str(folder), "--start", str(folder / "none")]) == 0
    return folder


def after_steps(n: int) -> Callable[[], bool]:
    """Over after so many steps: it is asked once before each."""
    asked = iter(range(n))
    return lambda: next(asked, None) is None


def state(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = folder / f"{name}.safetensors"
    with safe_open(path, framework="numpy") as file:
        return load_file(path), json.loads(file.metadata()["state"])


@pytest.mark.parametrize("name", pretrain.TRAININGS)
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    name: str, made: Path, work: Path
) -> None:
    if name == "denoiser":
        (work / "autoencoder").symlink_to(made / "autoencoder")
    call = Call(PLAN, work, work / "none")
    assert not pretrain.train(name, replace(call, over=after_steps(1)))
    assert state(work, name)[1]["steps"] == 1
    assert pretrain.train(name, call)
    whole, counts = state(made, name)
    resumed, resumed_counts = state(work, name)
    assert resumed_counts["images"] == counts["images"] == call_length(name)
    assert whole.keys() == resumed.keys()
    for key in whole:
        assert torch.equal(whole[key], resumed[key]), key


def test_id3_learns_on_the_embedded_weights_and_leaves_what_sampling_reads(work: Path) -> None:
    from pipeline_steps.diffusion.id3 import FILE_NAME, TRAINED_ON

    call = Call(PLAN, work, work / "none", keep=work / "kept")
    assert pretrain.train("id3", call)
    assert set(state(work, "id3")[1]["curve"][-1]) >= {"unseen", "like_0", "like_1"}
    tensors = load_file(work / "weights" / "id3" / FILE_NAME)
    assert tensors.pop(TRAINED_ON).shape == (PLAN.people * PLAN.each, 4)
    average = state(work, "id3")[0]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, average[f"average/{name}"].half())
    assert {name.split(".")[0] for name in tensors} == {"condition", "unet"}
    # a small state holds what is trained alone, and training goes on from it
    small = [load_file(path) for path in sorted((work / "kept").glob("id3-*.safetensors"))]
    assert {name for part in small for name in part} == set(tensors)
    (work / "id3.safetensors").unlink()
    longer = replace(PLAN, id3=replace(SMALL, images=SMALL.images + 2))
    assert pretrain.train("id3", Call(longer, work, work / "kept"))
    assert state(work, "id3")[1]["images"] == SMALL.images + 2


def test_what_ships_goes_on_from_where_its_curve_alone_says_it_is(work: Path) -> None:
    kept = work / "kept"
    kept.mkdir()
    (kept / "attributes.csv").write_text("steps,images,seconds,loss,age\n3,6,1.5,0.5,\n")
    assert pretrain.train("attributes", Call(PLAN, work, kept))
    tensors, counts = state(work, "attributes")
    assert (counts["steps"], counts["images"], counts["warm"]) == (4, SMALL.images, 2)
    assert counts["curve"][0] == {"steps": 3, "images": 6, "seconds": 1.5, "loss": 0.5}
    entry = pretrain.shipped()["demo_attributes"]
    shipped = load_file(entry.source)["stages.0.0.weight"].float()
    change = (tensors["weights/stages.0.0.weight"] - shipped).abs().max()
    assert 0 < float(change) <= 1.1 * SMALL.learning_rate  # one step


def call_length(name: str) -> int:
    return (PLAN.recogniser if name.startswith("recogniser") else SMALL).images


def test_a_killed_run_goes_on_from_its_last_save_bit_for_bit(
    made: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pretrain.SAVE_EVERY, "cpu", 0.0)  # after every step

    class Killed(BaseException):
        pass

    asked = after_steps(2)

    def die() -> bool:
        if asked():
            raise Killed
        return False

    call = Call(PLAN, work, work / "none")
    with pytest.raises(Killed):
        pretrain.train("autoencoder", replace(call, over=die))
    assert state(work, "autoencoder")[1]["steps"] == 2
    assert pretrain.train("autoencoder", call)
    for key, value in state(made, "autoencoder")[0].items():
        assert torch.equal(value, state(work, "autoencoder")[0][key]), key


def test_minutes_end_it_and_everything_is_saved(work: Path, monkeypatch: Any) -> None:
    now = iter(np.arange(0.0, 1e6, 10.0))
    monkeypatch.setattr(pretrain.time, "monotonic", lambda: float(next(now)))
    folders = ["--work", str(work), "--start", str(work / "none"), "--keep", str(work / "kept")]
    assert main([*folders, "--minutes", "2"]) == 0
    counts = state(work, "autoencoder")[1]
    assert 0 < counts["images"] < SMALL.images
    assert counts["curve"][-1]["steps"] == counts["steps"]
    assert (work / "kept" / "autoencoder-0.safetensors").exists()
    assert not (work / "recogniser.safetensors").exists()


def test_a_share_of_the_minutes_makes_way_for_the_next(work: Path) -> None:
    plan = replace(PLAN, shares={"attributes": 0.0, "autoencoder": 0.0})
    call = Call(plan, work, work / "none", minutes=1.0)
    assert pretrain.pretrain(call, ["autoencoder", "attributes"])
    assert not (work / "attributes.safetensors").exists()


def test_a_small_state_is_taken_up_where_it_is_further(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PART_BYTES", 400_000)
    kept, elsewhere = work / "kept", work / "elsewhere"
    call = Call(PLAN, work, kept, keep=kept)
    pretrain.train("recogniser", call)
    files = sorted(kept.glob("recogniser-*.safetensors"))
    assert len(files) > 1
    small = {k: t for path in files for k, t in load_file(path).items()}
    assert not any(key.startswith("head.") for key in small)
    header, row = (kept / "recogniser.csv").read_text().splitlines()
    assert header == "steps,images,seconds,loss,eer,faceless"
    assert row.startswith("2,16,")
    elsewhere.mkdir()
    (elsewhere / "photographs").symlink_to(work / "photographs")
    longer = replace(PLAN, recogniser=replace(PLAN.recogniser, images=24))
    pretrain.train("recogniser", Call(longer, elsewhere, kept, over=lambda: False))
    tensors, counts = state(elsewhere, "recogniser")
    assert (counts["images"], counts["steps"], counts["warm"]) == (24, 3, 8)
    assert [row["images"] for row in counts["curve"]] == [16, 24]
    key = "network.conv1.weight"
    start, now = small[key].float(), tensors[f"weights/{key}"]
    assert 0 < float((now - start).abs().max()) < 0.01
    older = Call(longer, elsewhere, kept)
    pretrain.train("recogniser", older)  # the whole state is further now
    assert state(elsewhere, "recogniser")[1]["steps"] == 3


def test_a_state_of_other_networks_is_refused_in_a_sentence(made: Path, work: Path) -> None:
    (work / "recogniser.safetensors").symlink_to(made / "autoencoder.safetensors")
    with pytest.raises(StepError, match="of other networks"):
        pretrain.train("recogniser", Call(PLAN, work, work / "none"))


def test_two_trainings_in_one_folder_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretrain.alone(work):
        assert main(["--work", str(work)]) == 2
    assert "another training works" in capsys.readouterr().err


def test_plain_diffusers_opens_the_base_model_and_makes_an_image(made: Path) -> None:
    from diffusers import StableDiffusionPipeline

    folder = made / "weights" / "base_model"
    texts = [path.read_text() for path in folder.glob("**/*.json")]
    assert not any(str(place) in text for place in (made, Path.cwd()) for text in texts)
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    pictures = pipe(
        "photo of sks person, close-up portrait, happy expression, busy forest environment",
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert pictures.shape == (1, 64, 64, 3)
    assert np.isfinite(pictures).all()


@pytest.mark.parametrize("kind", PLAN.recognisers, ids=lambda kind: kind.name)
def test_a_recogniser_opens_from_the_registrys_entry(made: Path, kind: Any) -> None:
    source = made / "weights" / kind.name / "model.safetensors"
    shipped = pretrain.shipped()[f"demo_{kind.name}"]
    recogniser = load_recogniser(shipped.model_copy(update={"source": str(source), "sha256": {}}))
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    np.testing.assert_allclose(np.linalg.norm(recogniser.embed(faces), axis=1), 1, rtol=1e-5)
    if kind.guides:
        assert np.isfinite(recogniser.quality(faces)).all()


def test_the_attribute_network_reads_numbers_beside_classes(made: Path) -> None:
    network = AttributeNet.from_state_dict(
        load_file(made / "weights" / "attributes" / "model.safetensors")
    )
    widths = {k: v.shape[1] for k, v in network.float()(torch.zeros(1, 3, 64, 64)).items()}
    assert widths == {"place": 11, "expression": 5, "male": 2} | dict.fromkeys(
        ("age", "yaw", "pitch", "roll", "skin"), 1
    )


def test_hashes_name_every_weight_file(made: Path) -> None:
    weights = made / "weights"
    note = json.loads((weights / "hashes.json").read_text())
    assert note["plan"]["seed"] == 5
    assert {p.relative_to(weights).as_posix() for p in weights.rglob("*.safetensors")} <= set(
        note["sha256"]
    )
    for name, digest in note["sha256"].items():
        assert sha256_file(weights / name) == digest
