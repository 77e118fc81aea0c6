"""Stable Diffusion 1.x and 2.x, and every pipeline of the same layout at any size.

One CLIP text encoder, a denoising network conditioned by cross-attention alone, noise or velocity
prediction as the scheduler's configuration says. Source: Rombach et al., 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Conditioning,
    read_schedule,
    read_tokens,
)
from pipeline_steps.io.weights import open_network


def load(folder: Path, *, name: str, resolution: int) -> BaseModel:
    """Load a Stable Diffusion pipeline folder in float32 on the CPU.

    Raises:
        StepError: a component lacks tensors, or holds others.
        OSError: a component is missing.
        ValueError: a component is not of this architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = open_network(CLIPTextModel, folder, "text_encoder")
    schedule, alphas_cumprod = read_schedule(folder)

    def encode(prompts: Sequence[str | None]) -> Conditioning:
        return Conditioning(text_encoder(read_tokens(tokenizer, prompts, text_encoder.device))[0])

    return BaseModel(
        name=name,
        resolution=resolution,
        unet=open_network(UNet2DConditionModel, folder, "unet"),
        vae=open_network(AutoencoderKL, folder, "vae"),
        text_encoders=[text_encoder],
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod,
        encode=encode,
    )
