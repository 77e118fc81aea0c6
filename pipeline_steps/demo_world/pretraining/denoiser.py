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

from pipeline_steps.demo_world.pretraining.captions import caption
from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.io.atomic import write_text
from pipeline_steps.seeds import numpy_generator

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TRAIN_TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012
SNR_CAP = 5.0
CAPTION_FACTS = ("identity", "male", "expression", "place", "yaw")
CAPTIONS_EACH = 16  # of a photograph; each step takes one


def networks(folder: Path, channels: int) -> nn.ModuleDict:
    """Denoiser `unet` and text encoder `text` of a pipeline folder, in single precision.

    Args:
        folder: of a Stable Diffusion pipeline.
        channels: of the latents. Where the folder's have fewer, the others are not read and
            predicted as zero to begin with.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    shipped = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    wider = dict(shipped.config) | {"in_channels": channels, "out_channels": channels}
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(wider)
    own = unet.state_dict()
    for name, tensor in shipped.state_dict().items():
        own[name].zero_()[tuple(map(slice, tensor.shape))] = tensor
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    return nn.ModuleDict({"unet": unet, "text": text})


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
        mean, std: of the autoencoder's posterior, float16 [n, c, 16, 16], unscaled.
        scaling_factor: the autoencoder's.
        tokens: ids of CAPTIONS_EACH captions of each, int16 [n, k, t].
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    tokens: Tensor

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


def stage(
    folder: Path, seen: Encoded, unseen: Encoded, run: Run, *, seed: int, amounts: Amounts
) -> Stage:
    """The training of the denoiser and text encoder of a pipeline folder, from its weights on.

    For the other arguments see `autoencoder.stage`.
    """
    model = networks(folder, seen.mean.shape[1]).to(run.device)
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
        hold=100_000,
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
    folder: Path, start: Path, autoencoder: Path, unet: UNet2DConditionModel, text: CLIPTextModel
) -> None:
    """Write a base model as a Stable Diffusion folder that plain diffusers opens.

    Args:
        folder: to write; networks are in half precision there.
        start: the folder whose training went on: tokenizer and noise schedule stay.
        autoencoder: folder of the autoencoder.
        unet, text: trained; they are in half precision afterwards.
    """
    from diffusers import AutoencoderKL

    shutil.copytree(start, folder, dirs_exist_ok=True)
    if autoencoder != start / "vae":
        AutoencoderKL.from_pretrained(autoencoder).half().save_pretrained(folder / "vae")
    text.half().save_pretrained(folder / "text_encoder")
    unet.half().save_pretrained(folder / "unet")
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # a folder of this machine
        # Stored in half precision, computed in single: transformers opens a part in the precision
        # that its configuration names, diffusers in single, and the parts have to fit each other.
        if path.parent.name == "text_encoder":
            config["dtype"] = "float32"
        write_text(path, json.dumps(config, indent=2) + "\n")
