"""The published architectures on a card that holds shapes and no numbers: any size, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.random_models import build, read_architecture
from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning, Runtime
from pipeline_steps.diffusion.guide import frozen_copy
from pipeline_steps.diffusion.training.data import LatentSet, Recipe
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.faces.detection import crop_and_resize
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.io.tensors import send
from pipeline_steps.study.settings.diffusion import FinetuneSettings

TOKENS = 77


class CentralFace:
    """The middle half of every image is its face, embedded by an iResNet-100 without weights."""

    def __init__(self) -> None:
        with torch.device("meta"):
            network = frozen_copy(IResNet().eval())
        self.network = network.to("cuda")

    def boxes(self, images: Tensor) -> list[np.ndarray | None]:
        side = images.shape[-1]
        return [np.array([side // 4, side // 4, 3 * side // 4, 3 * side // 4], np.float32)] * len(
            images
        )

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self.network(crop_and_resize(images, boxes))


def base_model(name: str) -> BaseModel:
    """A base model's denoising network and autoencoder in bf16 on the pretended card."""
    architecture = read_architecture(name)
    config = architecture["unet"]
    texts = [part for key, part in architecture.items() if key.startswith("text_encoder")]

    def encode(prompts: Sequence[str]) -> Conditioning:
        """What the text encoders of this architecture give, by its widths."""
        n = len(prompts)
        hidden = torch.zeros(n, TOKENS, config["cross_attention_dim"], dtype=torch.bfloat16)
        added = {}
        if config.get("addition_embed_type") == "text_time":
            pooled = texts[-1]["projection_dim"]
            added = {"text_embeds": torch.zeros(n, pooled), "time_ids": torch.zeros(n, 6)}
        return Conditioning(
            send(hidden, "cuda"),
            {key: send(value.bfloat16(), "cuda") for key, value in added.items()},
        )

    return BaseModel(
        name=name,
        resolution=architecture["resolution"],
        unet=build(config, "meta"),
        vae=build(architecture["vae"], "meta"),
        text_encoders=[],
        scheduler_config={"prediction_type": architecture["scheduler"]["prediction_type"]},
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000, dtype=torch.float64),
        encode=encode,
    ).to("cuda", "bf16")


def latents(base: BaseModel, prompt: str) -> LatentSet:
    shape = (2, *base.latent_shape)
    return LatentSet(torch.zeros(shape), torch.ones(shape), torch.ones(2, 512), prompt)


def fleet(base: BaseModel, method: str, count: int, **runtime: Any) -> Fleet:
    """A fleet of ``count`` identities in the paper's settings."""
    settings = FinetuneSettings(steps=2, precision="bf16").for_method(method)
    return Fleet(
        base,
        {f"ID_{k}": latents(base, "photo of sks person") for k in range(count)},
        latents(base, "photo of a person"),
        Recipe(method, settings, 0),
        guide=CentralFace() if method != "dreambooth" else None,
        runtime=Runtime(compile="off", **runtime),
    )
