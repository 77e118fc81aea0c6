"""Base models by configuration alone: noise and velocity prediction, Stable Diffusion XL."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_models import write_random_pipeline
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, to_arrays
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.diffusion.training.data import LatentSet, Recipe
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.diffusion import FinetuneSettings
from tests.diffusion.tiny_study import base_weights
from tests.diffusion.toy_fleet import fine_tune

REQUEST = ImageRequest("ID_1", 0, "photo of sks person", "cartoon, cgi", seed=5)


def our_image(base: BaseModel, negative_prompt: str = REQUEST.negative_prompt) -> np.ndarray:
    request = replace(REQUEST, negative_prompt=negative_prompt)
    [(_, images)] = sample(base, [request], Sampling(3, 5.0, "ddpm", 1))
    return to_arrays(images)[0]


def plain_image(pipe: object, negative_prompt: str | None = REQUEST.negative_prompt) -> np.ndarray:
    from diffusers import DDPMScheduler

    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    image = pipe(  # type: ignore[operator]
        REQUEST.prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(REQUEST.seed),
        output_type="np",
    ).images[0]
    result: np.ndarray = (image * 255).round().astype(np.uint8)
    return result


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def train(base: BaseModel) -> list[float]:
    shape = (2, *base.latent_shape)
    images = LatentSet(torch.randn(shape), torch.rand(shape), None, "photo of sks person")
    settings = FinetuneSettings(steps=2).for_method("dreambooth")
    recipe = Recipe("dreambooth", settings, 0)
    result = fine_tune(base, {"ID_1": images}, images, recipe)
    assert result["ID_1"].finite
    return result["ID_1"].losses["instance"]


def test_velocity_prediction_follows_from_the_schedule(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    write_random_pipeline(tmp_path, prediction_type="v_prediction")
    base = load_base_model(base_weights(tmp_path))
    assert base.prediction_type == "v_prediction"
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert largest_difference(our_image(base), plain_image(pipe)) <= 1


def test_latents_have_the_models_own_scale(tmp_path: Path) -> None:
    write_random_pipeline(tmp_path, scaling_factor=0.5)
    base = load_base_model(base_weights(tmp_path))
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    mean, std = base.encode_images(images, chunk=2)
    posterior = base.vae.encode(images).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, posterior.std * 0.5, rtol=1e-4, atol=1e-5)
    expected = base.vae.decode(mean / 0.5).sample
    torch.testing.assert_close(base.decode(mean), expected)


def test_a_component_replaces_the_autoencoder_with_its_own_scale(tmp_path: Path) -> None:
    whole = write_random_pipeline(tmp_path / "a", scaling_factor=0.13025)
    other = write_random_pipeline(tmp_path / "b", scaling_factor=0.5, seed=1)
    vae = base_weights(other / "vae").model_copy(update={"name": "fixed", "task": "autoencoder"})
    entry = base_weights(whole).model_copy(update={"components": {"vae": vae}})
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected, _ = load_base_model(base_weights(other)).encode_images(images)
    base = load_base_model(entry)
    torch.testing.assert_close(base.encode_images(images)[0], expected)
    unchanged = load_base_model(base_weights(whole))
    torch.testing.assert_close(
        base.unet.conv_in.weight, unchanged.unet.conv_in.weight, rtol=0.0, atol=0.0
    )
    small = write_random_pipeline(tmp_path / "c", vae_widths=(8, 8))
    unfit = vae.model_copy(update={"source": str(small / "vae")})
    with pytest.raises(StepError, match="'fixed' has 4 latent channels and 2 levels"):
        load_base_model(entry.model_copy(update={"components": {"vae": unfit}}))


def test_half_precision_files_are_read_in_full(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    write_random_pipeline(tmp_path / "full")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "full", torch_dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half")
    base = load_base_model(base_weights(tmp_path / "half"))
    assert base.dtype == torch.float32
    assert next(base.vae.parameters()).dtype == torch.float32
    assert base.encode_prompts(["photo"]).hidden.dtype == torch.float32


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL, from the parts of a tiny Stable Diffusion."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("xl")
    small = StableDiffusionPipeline.from_pretrained(
        write_random_pipeline(folder / "small", scaling_factor=0.13025), safety_checker=None
    )
    torch.manual_seed(0)
    config = CLIPTextConfig.from_dict(
        small.text_encoder.config.to_dict() | {"hidden_size": 8, "projection_dim": 12}
    )
    unet = UNet2DConditionModel.from_config(
        dict(small.unet.config)
        | {
            "cross_attention_dim": 16 + 8,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 12 + 6 * 4,
        }
    )
    StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=small.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    ).save_pretrained(folder / "tiny")
    return folder / "tiny"


def xl_weights(folder: Path) -> Weights:
    return base_weights(folder).model_copy(update={"architecture": "stable-diffusion-xl"})


def test_stable_diffusion_xl_is_told_the_size_of_images_that_are_no_squares(
    xl_folder: Path,
) -> None:
    base = load_base_model(xl_weights(xl_folder))
    side = base.resolution
    for size in (None, (side, 2 * side)):
        told = replace(base, size=size).encode_prompts(["photo", None]).added["time_ids"]
        height, width = size or (side, side)
        assert told.tolist() == [[height, width, 0, 0, height, width]] * 2


def test_stable_diffusion_xl_gives_diffusers_image_and_trains(xl_folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    base = load_base_model(xl_weights(xl_folder))
    pipe = StableDiffusionXLPipeline.from_pretrained(xl_folder, add_watermarker=False)
    pipe.vae.config.force_upcast = False
    assert largest_difference(our_image(base), plain_image(pipe)) <= 1
    assert largest_difference(our_image(base), our_image(base, "")) > 1
    assert all(np.isfinite(train(base)))


@pytest.mark.parametrize("stated", [True, False, None])
def test_an_empty_negative_prompt_is_zeros_where_the_pipeline_says_so(
    xl_folder: Path, tmp_path: Path, stated: bool | None
) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = shutil.copytree(xl_folder, tmp_path / "xl")
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("force_zeros_for_empty_prompt", None)
    index |= {} if stated is None else {"force_zeros_for_empty_prompt": stated}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.vae.config.force_upcast = False
    ours = our_image(load_base_model(xl_weights(folder)), "")
    assert largest_difference(ours, plain_image(pipe, None)) <= 1
    encoded = largest_difference(ours, plain_image(pipe, ""))
    assert encoded <= 1 if stated is False else encoded > 1


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("text_encoder", "final_layer_norm.bias"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
    ],
)
def test_a_part_that_lacks_tensors_or_holds_others_is_refused(
    tmp_path: Path, part: str, gone: str
) -> None:
    folder = write_random_pipeline(tmp_path)
    [file] = (folder / part).glob("*.safetensors")
    whole = load_file(file)
    [name] = [own for own in whole if own.endswith(gone)]
    save_file({own: value for own, value in whole.items() if own != name}, file, {"format": "pt"})
    with pytest.raises(StepError, match=rf"{part} is not .* lacks 1 tensors \({gone}\)\. Fetch"):
        load_base_model(base_weights(folder))
    save_file(whole | {"odd": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(StepError, match=rf"{part} is not .* has no place for 1 tensors \(odd\)"):
        load_base_model(base_weights(folder))


def test_unfit_entries_are_refused_by_name(tmp_path: Path, xl_folder: Path) -> None:
    entry = base_weights(xl_folder)
    with pytest.raises(StepError, match="stable-diffusion"):
        load_base_model(entry.model_copy(update={"architecture": "gan"}))
    with pytest.raises(StepError, match="resolution"):
        load_base_model(entry.model_copy(update={"options": {}}))
    (tmp_path / "unet").mkdir()
    with pytest.raises(StepError, match="unfit"):
        load_base_model(base_weights(tmp_path))
