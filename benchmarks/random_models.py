"""Base models with random weights: small ones, and the published architectures by their shapes.

Speed and memory do not depend on the weights, so these stand in where the real ones are not at
hand; their images are noise. ``resources/architectures/<name>.json`` holds what the published
configuration files say of a model, component by component: networks built from it have the real
layers, names and counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.runtime.errors import StepError

LATENT_SIDE = 8
TEXT_WIDTH = 16  # of the text encoder and of the cross-attention
TEXT_LENGTH = 77  # tokens per prompt
GROUPS = 8  # of group normalisation
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
FOLDER = PROJECT_ROOT / "resources" / "architectures"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2", "vision")
CHANNELS_PER_HEAD = 4  # of a reduced denoising network; the published ones have 64
VAE_DIVISOR = 16

Architecture = dict[str, Any]


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


def read_architecture(name: str) -> Architecture:
    """A published architecture: component to configuration, and for a base model its resolution.

    Raises:
        StepError: there is none of this name.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise StepError(f"no architecture {name!r} in {FOLDER}; there are {known}")
    result: Architecture = json.loads(path.read_text(encoding="utf-8"))
    return result


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """A network from its configuration, with initial weights; "meta" gives shapes alone."""
    import diffusers
    import transformers

    with torch.device(device):
        if "_class_name" in config:
            network: nn.Module = getattr(diffusers, config["_class_name"]).from_config(dict(config))
            return network
        model = getattr(transformers, config["architectures"][0])
        network = model(model.config_class(**config))
        return network


def parameter_count(network: nn.Module) -> int:
    """Number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def reduced(architecture: Architecture, side: int = 64) -> Architecture:
    """A base model's architecture, narrow enough for tests.

    Kept: block types, numbers of layers and of attention heads, depths of the transformers, the
    widths of the text states and of the cross-attention, the schedule and the latent scale.
    Narrowed: channels per head and level, the autoencoder, layers and vocabulary of the text
    encoders.

    Args:
        architecture: A base model's.
        side: Side of its images in pixels, a multiple of 64.
    """
    unet, vae = dict(architecture["unet"]), dict(architecture["vae"])
    heads = unet["attention_head_dim"]  # diffusers' name for the number of heads
    unet["block_out_channels"] = [n * CHANNELS_PER_HEAD for n in heads]
    unet["norm_num_groups"] = CHANNELS_PER_HEAD
    vae["block_out_channels"] = [width // VAE_DIVISOR for width in vae["block_out_channels"]]
    vae["norm_num_groups"] = vae["block_out_channels"][0]
    unet["sample_size"] = side // 2 ** (len(vae["block_out_channels"]) - 1)
    vae["sample_size"] = side
    encoders = {
        part: config
        | {
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "vocab_size": len(byte_vocabulary()),
            "eos_token_id": byte_vocabulary()[SPECIAL_TOKENS[1]],
        }
        for part, config in architecture.items()
        if part.startswith("text_encoder")
    }
    return architecture | encoders | {"unet": unet, "vae": vae, "resolution": side}


def write_pipeline(
    folder: str | os.PathLike[str], architecture: Architecture, seed: int = 0
) -> Path:
    """Write a base model's pipeline folder with random weights, as diffusers stores it.

    Args:
        folder: Created where it does not exist.
        architecture: A base model's.
        seed: Of the weights.

    Returns:
        The folder.
    """
    import diffusers
    from transformers import CLIPTokenizer

    parts: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts |= {name: build(architecture[name]) for name in NETWORKS if name in architecture}
    for name in [name for name in parts if name.startswith("text_encoder")]:
        length = architecture[name]["max_position_embeddings"]
        parts[name.replace("text_encoder", "tokenizer")] = CLIPTokenizer(
            vocab=byte_vocabulary(), merges=[], model_max_length=length
        )
    schedule = architecture["scheduler"]
    parts["scheduler"] = getattr(diffusers, schedule["_class_name"]).from_config(schedule)
    if architecture["pipeline"] == "StableDiffusionPipeline":
        parts |= {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    else:
        parts["add_watermarker"] = False
    pipeline: Any = getattr(diffusers, architecture["pipeline"])(**parts)
    pipeline.save_pretrained(folder)
    return Path(folder)
