"""Stable Diffusion 1.x and 2.x, and every pipeline of the same layout at any size.

One CLIP text encoder, a denoising network conditioned by cross-attention alone, noise or velocity
prediction as the scheduler's configuration says. Source: Rombach et al., 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Conditioning,
    read_schedule,
    read_tokens,
)


def load(folder: Path, *, name: str, resolution: int) -> BaseModel:
    """Load a Stable Diffusion pipeline folder in float32 on the CPU.

    Raises:
        OSError: a component is missing.
        ValueError: a component is not of this architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(
        folder, subfolder="text_encoder", dtype=torch.float32
    )
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    schedule, alphas_cumprod = read_schedule(folder)

    def encode(prompts: Sequence[str | None]) -> Conditioning:
        return Conditioning(text_encoder(read_tokens(tokenizer, prompts, text_encoder.device))[0])

    return BaseModel(
        name=name,
        resolution=resolution,
        unet=unet,
        vae=vae,
        text_encoders=[text_encoder],
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod,
        encode=encode,
    )
