"""The whole pretraining with tiny amounts, and what it leaves: weights in everybody's formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_steps.demo_world.pretraining import pretrain_stages
from pipeline_steps.demo_world.pretraining.attributes_training import CLASSES
from pipeline_steps.demo_world.pretraining.pretrain import run
from pipeline_steps.demo_world.pretraining.pretrain_plan import RECOGNISERS, Plan, RecogniserPlan
from pipeline_steps.demo_world.pretraining.pretrain_stages import half_size
from pipeline_steps.faces.extractors import AttributeNet
from pipeline_steps.faces.recogniser import load_recogniser, read_state_dict
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.weights import Weights

PLAN = Plan(
    seed=5,
    identities=4,
    images_each=3,
    named=3,
    autoencoder_cycles=(1, 1),
    autoencoder_batch=2,
    recognisers=tuple(
        replace(r, widths=(16, 16, 16, 16, 16), embedding_dim=dim)
        for r, dim in zip(RECOGNISERS, (512, 8), strict=True)
    ),
    recogniser_epochs=1,
    attribute_steps=2,
    denoiser_steps=2,
    denoiser_batch=2,
    threads=1,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the stages and of the weights."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_stages, "ATTRIBUTE_BATCH", 4)
        patch.setattr(pretrain_stages.shutil, "which", lambda name: None)  # compiling takes longer
        run(PLAN, work=work, out=out)
    return work, out


def test_plain_diffusers_opens_the_base_model_and_makes_an_image(made: tuple[Path, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(made[1] / "base_model"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size
    images = pipe(
        "photo of sks person, close-up portrait, happy expression, busy forest environment",
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert images.shape == (1, 64, 64, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0


@pytest.mark.parametrize("plan", PLAN.recognisers, ids=lambda plan: plan.name)
def test_a_recogniser_opens_from_the_registrys_entry(
    made: tuple[Path, Path], plan: RecogniserPlan
) -> None:
    recogniser = load_recogniser(
        Weights(
            name=plan.name,
            task="recogniser",
            architecture="iresnet",
            source=str(made[1] / plan.name / "model.safetensors"),
            licence="Apache-2.0",
            commercial_use=True,
            options={
                "layers": list(plan.layers),
                "widths": list(plan.widths),
                "embedding_dim": plan.embedding_dim,
            },
        )
    )
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    embeddings = recogniser.embed(faces)
    assert embeddings.shape == (2, plan.embedding_dim)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    if plan.with_quality_head:
        assert np.isfinite(recogniser.quality(faces)).all()


def test_the_recognisers_share_nobody(made: tuple[Path, Path]) -> None:
    stages = made[0] / PLAN.stages_key()
    first, second = (np.load(stages / name / "images.npy") for name in ("images", "images_1"))
    assert first.shape == second.shape
    assert not any((a == b).all() for a in first for b in second)


def test_the_attribute_network_opens_in_half_precision(made: tuple[Path, Path]) -> None:
    state = read_state_dict(made[1] / "attributes" / "model.safetensors")
    assert state["stages.0.0.weight"].dtype == torch.float16
    network = AttributeNet.from_state_dict(state)
    logits = network(torch.zeros(1, 3, 64, 64))
    assert {name: value.shape[1] for name, value in logits.items()} == CLASSES


def test_hashes_name_every_weight_file(made: tuple[Path, Path]) -> None:
    note = json.loads((made[1] / "hashes.json").read_text())
    assert note["plan"]["seed"] == 5
    weights = {p.relative_to(made[1]).as_posix() for p in made[1].rglob("*.safetensors")}
    assert len(weights) == 6
    assert weights <= set(note["sha256"])
    for name, digest in note["sha256"].items():
        assert sha256_file(made[1] / name) == digest


def test_finished_stages_are_not_repeated(made: tuple[Path, Path]) -> None:
    work, out = made
    stages = work / PLAN.stages_key()

    def times() -> dict[str, int]:
        files = [
            *stages.glob("autoencoder_1/*"),
            *stages.glob("*.npy"),
            *stages.glob("images*/crops.npy"),
            *stages.glob("*.safetensors"),
        ]
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = times()
    assert len(before) == 9
    run(PLAN, work=work, out=out)
    assert times() == before


def test_weights_that_lie_there_are_replaced(made: tuple[Path, Path]) -> None:
    work, out = made
    trained = {
        name: out / name / "model.safetensors"
        for name in ("recogniser", "recogniser_b", "attributes")
    }
    before = {name: sha256_file(path) for name, path in trained.items()}
    for path in trained.values():
        path.write_bytes(b"of another training")
    run(PLAN, work=work, out=out)
    assert {name: sha256_file(path) for name, path in trained.items()} == before


def test_another_seed_shares_no_stage_and_a_longer_denoiser_shares_all() -> None:
    assert replace(PLAN, seed=6).stages_key() != PLAN.stages_key()
    assert replace(PLAN, images_each=4).stages_key() != PLAN.stages_key()
    assert replace(PLAN, denoiser_steps=9, threads=2).stages_key() == PLAN.stages_key()


def test_half_size_goes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_stages, "BLOCK", 2)
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    whole = images.reshape(5, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(half_size(images), np.floor(whole + 0.5))
