"""Face Fusion on the real networks: what is trained, what it sees, where it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.random_models import build, read_architecture
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_fusion import FaceFusion, Look
from pipeline_steps.diffusion.training.generator import Pictures, Training, list_pictures
from pipeline_steps.io.images import write_png
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings

SETTINGS = GeneratorSettings(steps=4, batch_size=2, references=2, warm_up=0, learning_rate=1e-2)
FROZEN = Frozen("test", "train_generator", 0, SETTINGS)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Two people of two images each, and a stranger, of whom there is one."""
    draw = np.random.default_rng(0)
    for name in ("anna/0", "anna/1", "ben/0", "ben/1", "alone"):
        write_png(tmp_path / f"{name}.png", draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "ben" / "1.txt").write_text("photo of ben at sea\n")
    return list_pictures(tmp_path, "photo of a person")


def test_references_are_other_images_of_the_same_folder(pictures: Pictures) -> None:
    told = {
        of.path: ([pictures.images[k].path for k in others], caption)
        for of, others, caption in zip(
            pictures.images, pictures.others, pictures.captions, strict=True
        )
    }
    assert told["anna/1.png"] == (["anna/0.png"], "photo of a person")
    assert told["ben/1.png"] == (["ben/0.png"], "photo of ben at sea")
    assert told["alone.png"] == (["alone.png"], "photo of a person")


def test_a_step_changes_face_weights_alone(base: BaseModel, pictures: Pictures) -> None:
    before = {name: p.clone() for name, p in base.unet.named_parameters()}
    training = Training(base, pictures, FROZEN)
    first = {name: p.clone() for name, p in training.fusion.state().items()}
    training.step()
    assert all(not torch.equal(first[name], p) for name, p in training.fusion.state().items())
    after = dict(base.unet.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_goes_on_bit_for_bit(base: BaseModel, pictures: Pictures) -> None:
    def trained(steps: int, state: dict[str, Tensor] | None = None) -> Training:
        training = Training(base, pictures, FROZEN)
        if state is not None:
            training.load_state(state)
        for _ in range(steps):
            training.step()
        training.fusion.remove()
        return training

    whole, parts = trained(4), trained(2, trained(2).state())
    assert parts.losses == whole.losses
    resumed = parts.fusion.state()
    assert all(torch.equal(w, resumed[name]) for name, w in whole.fusion.state().items())


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("sd21", {"cross_attention_dim": 768, "attention_head_dim": 8}, 24_780_800),  # SD-1.5
        ("sd21", {}, 24_780_800),
        ("sdxl", {}, 204_800_000),
    ],
)
def test_as_many_weights_as_the_paper_says(name: str, changes: dict[str, Any], count: int) -> None:
    """Two matrices of width times width at each of 16 (SDXL: 70) cross-attention layers."""
    unet = build(read_architecture(name)["unet"] | changes, "meta")
    fusion = FaceFusion(unet)
    assert sum(p.numel() for p in fusion.parameters()) == count
    assert not any(p.requires_grad for name, p in unet.named_parameters() if "_face." not in name)


def test_references_are_read_at_every_layer_and_only_by_whom_they_are_of(base: BaseModel) -> None:
    latents = torch.randn(4, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    condition, t = base.encode_prompts(["a face"] * 4), torch.full((4,), 500)
    plain = base.predict(latents, t, condition)
    fusion = FaceFusion(base.unet)
    fusion.initialise(torch.Generator().manual_seed(0))
    seen = fusion.read(base, latents)
    assert all(len(hidden) == 4 for hidden in seen.values())
    keys = fusion.keys({name: hidden[:2, None] for name, hidden in seen.items()})
    fusion.look(Look(keys, rows=torch.tensor([3, 1]), whom=torch.tensor([0, 1])))
    looked = base.predict(latents, t, condition)
    assert torch.equal(looked[[0, 2]], plain[[0, 2]])
    assert not torch.isclose(looked[[1, 3]], plain[[1, 3]]).all()
    fusion.remove()
    assert torch.equal(base.predict(latents, t, condition), plain)


def test_weights_of_another_base_model_are_refused(base: BaseModel) -> None:
    fusion = FaceFusion(base.unet)
    state = {name: p.new_zeros(3, 3) for name, p in fusion.state().items()}
    with pytest.raises(ValueError, match="another base model"):
        fusion.load(state)
