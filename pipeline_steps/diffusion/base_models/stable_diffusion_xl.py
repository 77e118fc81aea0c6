"""Stable Diffusion XL: two CLIP text encoders, a pooled text vector and six size numbers.

Source: Podell et al., 2024. Prompts are encoded as diffusers' pipeline does: the last but one
hidden layers of both encoders side by side, the second encoder's projection as pooled vector; the
size numbers say an uncropped image at the model's own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning, read_schedule


def load(folder: Path, *, name: str, resolution: int) -> BaseModel:
    """Load a Stable Diffusion XL pipeline folder in float32 on the CPU.

    Raises:
        OSError: a component is missing.
        ValueError: a component is not of this architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [
        CLIPTokenizer.from_pretrained(folder, subfolder=part)
        for part in ("tokenizer", "tokenizer_2")
    ]
    text_encoders = [
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(
            folder, subfolder="text_encoder_2", dtype=torch.float32
        ),
    ]
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    schedule, alphas_cumprod = read_schedule(folder)

    def encode(prompts: Sequence[str]) -> Conditioning:
        hidden = []
        for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
            tokens = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        size = (resolution, resolution, 0, 0, resolution, resolution)  # original, crop, target
        return Conditioning(
            torch.cat(hidden, dim=-1),
            {
                "text_embeds": output.text_embeds,
                "time_ids": output.text_embeds.new_tensor([size]).expand(len(prompts), -1),
            },
        )

    return BaseModel(
        name=name,
        resolution=resolution,
        unet=unet,
        vae=vae,
        text_encoders=list(text_encoders),
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod,
        encode=encode,
    )
