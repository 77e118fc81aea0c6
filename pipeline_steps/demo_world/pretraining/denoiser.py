"""Training of the embedded denoiser and its text encoder together, on cached latents.

Stable Diffusion's noise schedule (scaled-linear betas 0.00085 ... 0.012, 1000 steps) and objective
(Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020), weighted by min(SNR, 5) / SNR
(Hang et al., ICCV 2023), which spends the effort where shape and identity are decided.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline_steps.demo_world.pretraining.autoencoder import (
    DOWNSAMPLING,
    LATENT_CHANNELS,
    RESOLUTION,
)
from pipeline_steps.demo_world.pretraining.captions import MAX_TOKENS, caption
from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.io.atomic import write_text
from pipeline_steps.seeds import numpy_generator, seed_for

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 128
TRAIN_TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": FIRST_BETA,
    "beta_end": LAST_BETA,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
SNR_CAP = 5.0
CAPTION_FACTS = ("identity", "male", "expression", "place", "yaw")
CAPTIONS_EACH = 16  # of a photograph; each step takes one
FILE_SIZE = "4MB"  # of a part of the UNet's weights


def unet() -> UNet2DConditionModel:
    """Untrained UNet2DConditionModel for latents [n, 8, 16, 16] and context [n, tokens, 128].

    It attends to itself and to the text at every level, so that adapters on attention alone reach
    coarse shape and fine detail.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // DOWNSAMPLING,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 112, 144),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Untrained CLIPTextModel of three layers: token ids [n, t <= MAX_TOKENS] to [n, t, 128].

    Args:
        vocabulary: number of tokens; start and end are the last two, and the end also pads.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            projection_dim=TEXT_WIDTH,
        )
    )


@cache
def noise_schedule() -> tuple[Tensor, Tensor]:
    """Cumulative products of 1 - beta, and loss weights of mean 1, float32 [1000] each."""
    roots = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, TRAIN_TIMESTEPS)
    alpha_bar = torch.cumprod(1 - roots**2, 0)
    snr = alpha_bar / (1 - alpha_bar)
    weights = snr.clamp(max=SNR_CAP) / snr
    return alpha_bar, weights / weights.mean()


@dataclass(frozen=True)
class Encoded:
    """Photographs as the denoiser learns from them.

    Attributes:
        mean, std: of the autoencoder's posterior, float16 [n, 8, 16, 16], unscaled.
        scaling_factor: the autoencoder's.
        tokens: ids of CAPTIONS_EACH captions of each, int16 [n, k, t].
        vocabulary: number of different tokens.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    tokens: Tensor
    vocabulary: int

    def to(self, device: str) -> Encoded:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("mean", "std", "tokens")}
        return replace(self, **tensors)


def caption_tokens(
    columns: Mapping[str, np.ndarray], tokenizer: CLIPTokenizer, names: Sequence[str], *, seed: int
) -> Tensor:
    """Token ids int16 [n, CAPTIONS_EACH, t] of captions drawn for n photographs.

    Args:
        columns: what CAPTION_FACTS names, see images.py.
        tokenizer: of the captions.
        names: name words of the first identities.
        seed: of the captions' templates.
    """
    rng = numpy_generator(seed, "captions")
    facts = [columns[name].tolist() for name in CAPTION_FACTS]
    texts = [
        caption(
            rng,
            name=names[identity] if identity < len(names) else None,
            male=bool(male),
            expression=expression,
            place=place,
            yaw=yaw,
        )
        for identity, male, expression, place, yaw in zip(*facts, strict=True)
        for _ in range(CAPTIONS_EACH)
    ]
    index = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    ids = tokenizer(
        list(index),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(torch.int16)
    return ids[torch.tensor([index[text] for text in texts])].unflatten(0, (-1, CAPTIONS_EACH))


def stage(seen: Encoded, unseen: Encoded, run: Run, *, seed: int, amounts: Amounts) -> Stage:
    """The training of denoiser and text encoder; for the arguments see `autoencoder.stage`."""
    torch.manual_seed(seed_for(seed, "denoiser"))
    model = nn.ModuleDict({"unet": unet(), "text": text_encoder(seen.vocabulary)}).to(run.device)
    model["unet"].to(memory_format=torch.channels_last)
    seen, unseen = seen.to(run.device), unseen.to(run.device)

    def loss(count: int, generator: torch.Generator) -> Tensor:
        def draw(below: int) -> Tensor:
            return torch.randint(below, (count,), generator=generator, device=run.device)

        at, which = draw(len(seen.tokens)), draw(seen.tokens.shape[1])
        return _loss(model, seen, at, which, draw(TRAIN_TIMESTEPS), run, generator)

    def measure(average: nn.Module) -> dict[str, float]:
        at = torch.arange(len(unseen.tokens), device=run.device)
        generator = torch.Generator(run.device).manual_seed(0)
        level = TRAIN_TIMESTEPS / len(at)
        t = (at * level).long()
        return {"unseen": float(_loss(average, unseen, at, 0 * at, t, run, generator))}

    return Stage(
        name="denoiser",
        seed=seed,
        networks=model.train(),
        loss=loss,
        measure=measure,
        amounts=amounts,
        warm_up=6_000,
        hold=200_000,
    )


def _loss(
    networks: Any,
    photographs: Encoded,
    at: Tensor,
    which: Tensor,
    t: Tensor,
    run: Run,
    generator: torch.Generator,
) -> Tensor:
    """Weighted squared error of the noise predicted at steps t of photographs `at`, a scalar."""
    mean, std = photographs.mean[at].float(), photographs.std[at].float()
    draw = torch.randn((2, *mean.shape), generator=generator, device=mean.device)
    clean = (mean + std * draw[0]) * photographs.scaling_factor
    alpha_bar, weights = (values.to(mean.device)[t] for values in noise_schedule())
    a = alpha_bar[:, None, None, None]
    noisy = a.sqrt() * clean + (1 - a).sqrt() * draw[1]
    with run.autocast():
        context = networks["text"](photographs.tokens[at, which].long()).last_hidden_state
        predicted = networks["unet"](noisy, t, context).sample
    return (weights * (predicted.float() - draw[1]).square().mean((1, 2, 3))).mean()


def write_pipeline(
    folder: Path,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: Path,
) -> None:
    """Write the base model as a Stable Diffusion folder that plain diffusers opens.

    The networks are in half precision, there and afterwards; the tokenizer's folder is copied.
    """
    from diffusers import DDPMScheduler

    folder.mkdir(parents=True, exist_ok=True)
    autoencoder.half().save_pretrained(folder / "vae")
    text.half().save_pretrained(folder / "text_encoder")
    unet.half().save_pretrained(folder / "unet", max_shard_size=FILE_SIZE)
    # Stored in half precision, computed in single: transformers opens a part in the precision that
    # its configuration names, diffusers in single precision, and the parts have to fit each other.
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_text(folder / "model_index.json", json.dumps(index, indent=1) + "\n")
