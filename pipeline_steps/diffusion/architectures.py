"""The published architectures by their configurations, without their weights.

``resources/architectures/<name>.json`` holds what the published configuration files say about a
model's shape, component by component. Networks built from it have the real layers, names and
counts; they serve to check loading code, memory and adapters where the weights are not at hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline_steps.diffusion.random_pipeline import SPECIAL_TOKENS, byte_vocabulary
from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.runtime.errors import StepError

FOLDER = PROJECT_ROOT / "resources" / "architectures"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2", "vision")
CHANNELS_PER_HEAD = 4  # of a reduced denoising network; the published ones have 64
VAE_DIVISOR = 16

Architecture = dict[str, Any]


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
