"""Untrained pipelines of the real architecture, for timing and for trying a configuration.

Speed and memory do not depend on the weights, so these stand in where the real ones are not at
hand; their images are noise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

LATENT_SIDE = 8
TEXT_WIDTH = 16  # of the text encoder and of the cross-attention
TEXT_LENGTH = 77  # tokens per prompt
GROUPS = 8  # of group normalisation
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")


def write_random_pipeline(
    folder: str | os.PathLike[str],
    *,
    vae_widths: Sequence[int] = (8, 8, 16),
    prediction_type: str = "epsilon",
    scaling_factor: float = 0.18215,
    seed: int = 0,
) -> Path:
    """Write a small Stable Diffusion pipeline folder with random weights.

    Args:
        folder: Created where it does not exist.
        vae_widths: Channels of the autoencoder's levels, multiples of ``GROUPS``; images are
            ``2 ** (len(vae_widths) - 1)`` times as large as latents.
        prediction_type: "epsilon" or "v_prediction".
        scaling_factor: The autoencoder's.
        seed: Of the weights.

    Returns:
        The folder.
    """
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary = byte_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TEXT_LENGTH,
                bos_token_id=vocabulary[SPECIAL_TOKENS[0]],
                eos_token_id=vocabulary[SPECIAL_TOKENS[1]],
            )
        )
        unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            norm_num_groups=GROUPS,
        )
        vae = AutoencoderKL(
            sample_size=LATENT_SIDE * 2 ** (len(vae_widths) - 1),
            block_out_channels=tuple(vae_widths),
            down_block_types=("DownEncoderBlock2D",) * len(vae_widths),
            up_block_types=("UpDecoderBlock2D",) * len(vae_widths),
            layers_per_block=1,
            norm_num_groups=GROUPS,
            scaling_factor=scaling_factor,
        )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return Path(folder)


def byte_vocabulary() -> dict[str, int]:
    """CLIP's vocabulary without any merge: every byte, inside a word and at its end."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *SPECIAL_TOKENS]
    return {token: index for index, token in enumerate(tokens)}
