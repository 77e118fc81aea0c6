"""Stable Diffusion XL: two CLIP text encoders, a pooled text vector and six size numbers.

Source: Podell et al., 2024. Prompts are encoded as diffusers' pipeline does: the last but one
hidden layers of both encoders side by side, the second encoder's projection as pooled vector; the
size numbers say an uncropped image at the model's own resolution; an empty negative prompt is zeros
where the pipeline's ``force_zeros_for_empty_prompt`` says so, or says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Conditioning,
    read_schedule,
    read_tokens,
)
from pipeline_steps.io.weights import open_network


def load(folder: Path, *, name: str, resolution: int) -> BaseModel:
    """Load a Stable Diffusion XL pipeline folder; errors as of ``stable_diffusion.load``."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [
        CLIPTokenizer.from_pretrained(folder, subfolder=part)
        for part in ("tokenizer", "tokenizer_2")
    ]
    text_encoders = [
        open_network(CLIPTextModel, folder, "text_encoder"),
        open_network(CLIPTextModelWithProjection, folder, "text_encoder_2"),
    ]
    schedule, alphas_cumprod = read_schedule(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))

    def encode(prompts: Sequence[str | None]) -> Conditioning:
        parts = []
        for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
            ids = read_tokens(tokenizer, prompts, encoder.device)
            output = encoder(ids, output_hidden_states=True)
            parts.append(output.hidden_states[-2])
        hidden, pooled = torch.cat(parts, dim=-1), output.text_embeds
        silent = [zeros and prompt is None for prompt in prompts]
        hidden[silent], pooled[silent] = 0.0, 0.0
        size = (resolution, resolution, 0, 0, resolution, resolution)  # original, crop, target
        sizes = pooled.new_tensor([size]).expand(len(prompts), -1)
        return Conditioning(hidden, {"text_embeds": pooled, "time_ids": sizes})

    return BaseModel(
        name=name,
        resolution=resolution,
        unet=open_network(UNet2DConditionModel, folder, "unet"),
        vae=open_network(AutoencoderKL, folder, "vae"),
        text_encoders=list(text_encoders),
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod,
        encode=encode,
    )
