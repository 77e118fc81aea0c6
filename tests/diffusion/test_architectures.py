"""The published architectures: exact counts, and one step and one image of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.random_models import (
    build,
    parameter_count,
    read_architecture,
    reduced,
    write_pipeline,
)
from pipeline_steps.diffusion.base_models import ARCHITECTURES, load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, to_arrays
from pipeline_steps.diffusion.lora import AdapterBank, save_lora
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.diffusion.training.data import LatentSet, Recipe
from pipeline_steps.diffusion.training.fleet import FineTuned
from pipeline_steps.faces import prompts
from pipeline_steps.faces.extractors import EXTRACTORS
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.diffusion import FinetuneSettings
from tests.diffusion.tiny_study import EveryFace, base_weights
from tests.diffusion.toy_fleet import fine_tune

ROOT = Path(__file__).parents[2]
TRAINED = [name for name, method in METHODS.items() if method.trains]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
BASE_MODELS = ("sd21", "sd21_v", "sdxl")
ARCHITECTURE_OF = {
    "sd21": "stable-diffusion",
    "sd21_v": "stable-diffusion",
    "sdxl": "stable-diffusion-xl",
}


@cache
def published(name: str, part: str) -> nn.Module:
    return build(read_architecture(name)[part], "meta")


@pytest.mark.parametrize(
    ("name", "part", "count", "file_size"),
    # File sizes in bytes are those of the published float32 files: a header, and 4 per number.
    [
        ("sd21", "unet", 865_910_724, 3_463_726_504),
        ("sd21", "vae", 83_653_863, 334_643_276),
        ("sd21", "text_encoder", 340_387_840, 1_361_597_018),
        ("sd21_v", "unet", 865_910_724, None),
        ("sdxl", "unet", 2_567_463_684, 10_270_077_736),
        ("sdxl", "vae", 83_653_863, 334_643_268),
        ("sdxl", "text_encoder", 123_060_480, 492_265_168),
        ("sdxl", "text_encoder_2", 694_659_840, 2_778_702_264),
        ("dinov2_l14", "vision", 304_368_640, 1_217_522_888),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, part: str, count: int, file_size: int | None
) -> None:
    assert parameter_count(published(name, part)) == count
    if file_size is not None:
        assert 0 < file_size - 4 * count < 300_000


def vision_transformer(width: int, layers: int, patches: int, patch: int) -> int:
    """Parameters of a ViT without its norms before and after: by the paper's own dimensions."""
    embedding = 3 * patch**2 * width + (patches + 1) * width + width
    layer = 4 * width**2 + 4 * width + 8 * width**2 + 5 * width + 4 * width
    return embedding + layers * layer


def test_the_image_encoders_have_the_counts_of_their_dimensions() -> None:
    # CLIP: two norms more and a projection, no bias of the patches.
    clip = vision_transformer(1024, 24, (336 // 14) ** 2, 14) + 2 * 2048 + 1024 * 768
    assert parameter_count(published("clip_l14_336", "vision")) == clip == 304_293_888
    # DINOv2: a bias of the patches, a mask token, scales after both parts of a layer, one norm.
    dino = vision_transformer(1024, 24, (518 // 14) ** 2, 14) + 1024 * 2 + 24 * 2 * 1024 + 2048
    assert parameter_count(published("dinov2_l14", "vision")) == dino


def test_inception_fits_its_published_file() -> None:
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    assert parameter_count(network) == 23_850_960
    size = read_models(ROOT / "config" / "models.yaml")["inception_v3"].size
    assert size is not None
    assert 0 < size - 4 * parameter_count(network) < 300_000  # running statistics, and the code


@pytest.mark.parametrize(("name", "count"), [("sd21", 829_952), ("sdxl", 5_806_080)])
def test_adapters_of_the_paper_have_the_published_number_of_weights(name: str, count: int) -> None:
    unet = build(read_architecture(name)["unet"], "meta")
    bank = AdapterBank(unet, count=1, rank=4, alpha=4, targets=TARGETS)
    assert bank.weights.numel() == count
    assert [p.shape for p in unet.parameters() if p.requires_grad and p is bank.weights] == []
    trained = {id(p): p.numel() for n, p in unet.named_parameters() if n.endswith(("up", "down"))}
    assert sum(trained.values()) == count


@pytest.mark.parametrize("name", BASE_MODELS)
def test_reducing_keeps_every_layer(name: str) -> None:
    full = published(name, "unet")
    small = build(reduced(read_architecture(name))["unet"], "meta")
    assert small.state_dict().keys() == full.state_dict().keys()
    kinds = [type(module) for module in full.modules()]
    assert [type(module) for module in small.modules()] == kinds
    for of in ("cross_attention_dim", "attention_head_dim", "upcast_attention"):
        assert small.config[of] == full.config[of]  # type: ignore[index,operator]


@pytest.fixture(scope="module", params=BASE_MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    write_pipeline(folder, reduced(read_architecture(request.param)))
    entry = base_weights(folder).model_copy(
        update={"architecture": ARCHITECTURE_OF[request.param], "options": {"resolution": 64}}
    )
    return folder, load_base_model(entry), request.param


@pytest.fixture
def unchanged(model: Any) -> Iterator[None]:
    before = {name: value.clone() for name, value in model[1].unet.state_dict().items()}
    yield
    after = model[1].unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def tuned(base: BaseModel, method: str, steps: int = 1) -> FineTuned:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *base.latent_shape)
    mean = torch.randn(shape, generator=generator)
    faces = torch.nn.functional.normalize(torch.randn(1, 48, generator=generator))
    image = LatentSet(mean, torch.full(shape, 0.1), faces, "photo of sks person")
    prior = LatentSet(-mean, torch.full(shape, 0.1), -faces, "photo of a person")
    settings = FinetuneSettings(steps=steps).for_method(method)
    judge = EveryFace()
    recipe = Recipe(method, settings, 0)
    return fine_tune(base, {"ID_1": image}, prior, recipe, judge)["ID_1"]


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.usefixtures("unchanged")
def test_one_step_of_every_objective(model: Any, method: str) -> None:
    result = tuned(model[1], method)
    assert result.finite
    for name, values in result.losses.items():
        assert len(values) == 1, name
    identity = result.losses["identity"][0]
    assert (identity != 0.0) == (METHODS[method].identity_term is not None)


@pytest.mark.usefixtures("unchanged")
def test_one_image_with_adapters_is_the_one_of_diffusers(model: Any, tmp_path: Path) -> None:
    import diffusers

    folder, base, name = model
    generator = torch.Generator().manual_seed(1)
    adapter = {
        layer: (down, torch.randn(up.shape, generator=generator) * 0.05)
        for layer, (down, up) in tuned(base, "dreambooth").adapter.items()
    }
    save_lora(tmp_path, adapter, rank=4, alpha=4, targets=TARGETS)
    bank = AdapterBank(base.unet, count=1, rank=4, alpha=4, targets=TARGETS)
    request = ImageRequest("ID_1", 0, "photo of sks person", "cgi", seed=5, adapter=0)
    try:
        bank.load(0, adapter)
        [(_, images)] = sample(base, [request], Sampling(2, 5.0, "ddpm", 1), bank=bank)
        ours = to_arrays(images)[0]
    finally:
        bank.remove()
    pipeline: Any = getattr(diffusers, read_architecture(name)["pipeline"])
    plain = pipeline.from_pretrained(folder)
    plain.vae.config.force_upcast = False
    plain.load_lora_weights(tmp_path)
    plain.scheduler = diffusers.DDPMScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)

    def image() -> np.ndarray:
        result = plain(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(5),
            output_type="np",
        )
        return (result.images[0] * 255).round().astype(int)

    assert np.abs(image() - ours).max() <= 1
    plain.unload_lora_weights()
    assert np.abs(image() - ours).max() > 1  # the adapters show


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(StepError, match=r"no architecture 'sd9' .* dinov2_l14, sd21"):
        read_architecture("sd9")


def test_the_command_for_full_width_tells_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.real_architectures import main

    assert main(["--model", "sd21_v", "--reduced"]) == 0
    said = capsys.readouterr().out
    for method in TRAINED:
        assert f"one step of {method}: " in said
    found = re.search(r"difference to diffusers (\S+), to the network without adapter (\S+)", said)
    assert found is not None
    assert float(found[1]) < 1e-4 < float(found[2])
    assert "finite False" not in said


GENERATORS = {
    resolve_name(f"pipeline_steps.{method.family.trained_by}").file_name
    for method in METHODS.values()
    if method.family.trained_by
}
"""Files of weights that methods train once for a base model."""


def test_every_entry_of_the_registry_has_code_that_opens_it() -> None:
    for entry in read_models(ROOT / "config" / "models.yaml").values():
        if entry.task == "base_model":
            assert entry.architecture in ARCHITECTURES, entry.name
            assert entry.options["resolution"], entry.name
            assert set(entry.components) <= {"vae"}, entry.name
        elif entry.task == "generator":
            file = f"{entry.architecture.replace('-', '_')}.safetensors"
            assert file in GENERATORS and set(entry.sha256) == {file}, entry.name
        elif entry.task == prompts.TASK:
            assert entry.architecture in prompts.READERS, entry.name
        elif entry.task != "autoencoder":
            assert (entry.task, entry.architecture) in EXTRACTORS, entry.name


@pytest.mark.parametrize("name", BASE_MODELS)
def test_the_registry_names_the_published_resolution_and_parts(name: str) -> None:
    architecture = read_architecture(name)
    entry = read_models(ROOT / "config" / "models.yaml")[name]
    assert entry.options["resolution"] == architecture["resolution"]
    assert entry.architecture == ARCHITECTURE_OF[name]
    assert architecture["scheduler"]["clip_sample"] is False  # or DDPM would cut z_0 to [-1, 1]
    folders = {part for part in architecture if isinstance(architecture[part], dict)}
    tokenizers = {p.replace("text_encoder", "tokenizer") for p in folders if "text_" in p}
    assert {file.partition("/")[0] for file in entry.files if "/" in file} == folders | tokenizers
