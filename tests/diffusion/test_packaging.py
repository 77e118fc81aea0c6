"""The package of a base model and Face Fusion's weights runs without this project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion, Look, together
from pipeline_steps.diffusion.packaging import write_package
from pipeline_steps.diffusion.sampling.references import OnePersonEach, keys_of
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample_latents
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError
from tests.diffusion.tiny_study import base_weights

# In a process that cannot import this project.
SCRIPT = """
import sys, torch
from diffusers import DiffusionPipeline, DDIMScheduler
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from safetensors.torch import save_file
sys.modules["pipeline_steps"] = None
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
faces = [Image.open(path) for path in sys.argv[3:]]
side = faces[0].size[0]
how = dict(num_inference_steps=2, guidance_scale=3.0, output_type="latent")
def seed():
    return torch.Generator().manual_seed(5)
one = pipe("a face", faces=faces, generator=seed(), **how).images
nobody = pipe("a face", generator=seed(), **how).images
left = Image.new("L", (side, side))
left.paste(255, (0, 0, side // 2, side))
right = left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
masks = IPAdapterMaskProcessor().preprocess([left, right], height=side, width=side)
two = pipe("a face", faces=[[faces[0]], [faces[1]]], generator=seed(),
           cross_attention_kwargs={"ip_adapter_masks": masks}, **how).images
save_file({"one": one, "two": two, "nobody": nobody}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """A package with strong random weights, photographs, and what plain diffusers makes of them."""
    from pipeline_steps.diffusion.base_models import load_base_model

    folder = tmp_path_factory.mktemp("package")
    base = load_base_model(base_weights(pipeline_folder))
    fusion = FaceFusion(base.unet)
    fusion.initialise(torch.Generator().manual_seed(0))
    save_tensors(folder / FILE_NAME, {name: 10 * p for name, p in fusion.state().items()})
    write_package(base_weights(pipeline_folder), folder / FILE_NAME, folder / "package")
    draw, side = np.random.default_rng(0), base.resolution
    photographs = [folder / f"{k}.png" for k in range(2)]
    for path in photographs:
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    words = [SCRIPT, folder / "package", folder / "out.safetensors", *photographs]
    home = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", *map(str, words)], check=True, cwd=folder, env=home)
    return folder


def photographs(folder: Path) -> torch.Tensor:
    images = [np.asarray(Image.open(folder / f"{k}.png")) for k in range(2)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def sampled(base: BaseModel, bank: object) -> torch.Tensor:
    how = Sampling(steps=2, guidance=3.0, scheduler="ddim", batch_size=1)
    request = ImageRequest("ID_1", 0, "a face", "", 5, 0)
    [(_, latents)] = sample_latents(base, [request], how, bank=bank)  # type: ignore[arg-type]
    return latents


def test_plain_diffusers_makes_the_samplers_image_of_it(made: Path, base: BaseModel) -> None:
    fusion = FaceFusion(base.unet)
    fusion.load(load_file(made / FILE_NAME))
    keys = keys_of(base, fusion, photographs(made))
    found = load_file(made / "out.safetensors")
    ours = sampled(base, OnePersonEach(fusion, keys, guide_away=True))
    assert (found["one"] - ours).abs().max() <= 1e-4
    assert (found["nobody"] - ours).abs().max() > 1e-2


def test_its_masks_give_each_half_its_person(made: Path, base: BaseModel) -> None:
    fusion = FaceFusion(base.unet)
    fusion.load(load_file(made / FILE_NAME))
    people = [keys_of(base, fusion, photograph[None]) for photograph in photographs(made)]
    side = base.resolution
    masks = torch.zeros(2, side, side)
    masks[0, :, : side // 2] = masks[1, :, side // 2 :] = 1
    look = together(people, masks)

    class Together:
        compiles, condition = False, None

        def activate(self, *_: object, **__: object) -> None:
            one = torch.tensor([1])
            fusion.look(Look(look.keys, one, 0 * one, look.may_attend))

    found = load_file(made / "out.safetensors")
    assert (found["two"] - sampled(base, Together())).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="2 people but 1 masks"):
        together(people, masks[:1])


def test_weights_of_another_base_model_are_not_packed(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    save_tensors(tmp_path / FILE_NAME, {"down.attn2.processor.to_k_face.weight": torch.zeros(2, 2)})
    with pytest.raises(StepError, match="does not fit"):
        write_package(base_weights(pipeline_folder), tmp_path / FILE_NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()
