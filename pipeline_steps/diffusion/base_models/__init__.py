"""Base models: one module with a ``load`` function, and one entry here, per architecture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.weights import locate
from pipeline_steps.runtime.errors import StepError

if TYPE_CHECKING:
    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.io.weights import Weights


def _stable_diffusion(folder: Path, name: str, resolution: int) -> BaseModel:
    from pipeline_steps.diffusion.base_models import stable_diffusion

    return stable_diffusion.load(folder, name=name, resolution=resolution)


def _stable_diffusion_xl(folder: Path, name: str, resolution: int) -> BaseModel:
    from pipeline_steps.diffusion.base_models import stable_diffusion_xl

    return stable_diffusion_xl.load(folder, name=name, resolution=resolution)


ARCHITECTURES = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-xl": _stable_diffusion_xl,
}


def load_base_model(weights: Weights, device: str = "cpu", precision: str = "fp32") -> BaseModel:
    """Load a registry entry of task ``base_model``; all its networks are frozen.

    Args:
        weights: ``architecture`` is a key of ``ARCHITECTURES``; ``source`` is a pipeline folder as
            diffusers writes it; ``options.resolution`` is the image side in pixels. A component
            ``vae`` replaces the folder's autoencoder, together with its latent scale.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16": the type of the frozen weights.

    Raises:
        StepError: the architecture is unknown, or the weights are missing or unfit.
    """
    load = ARCHITECTURES.get(weights.architecture)
    if load is None:
        raise StepError(
            f"weights {weights.name!r}: architecture {weights.architecture!r} is no base model; "
            f"write {' or '.join(ARCHITECTURES)}"
        )
    resolution = weights.options.get("resolution")
    if not isinstance(resolution, int):
        raise StepError(f"weights {weights.name!r}: options.resolution (pixels) is missing")
    folder = locate(weights)
    _quiet_loading()
    try:
        base = load(folder, weights.name, resolution)
    except (OSError, ValueError) as error:
        raise StepError(f"base model {weights.name!r} at {folder} is unfit: {error}") from error
    if "vae" in weights.components:
        base.vae = _autoencoder(weights.components["vae"], base)
    return base.to(device, precision)


def _autoencoder(weights: Weights, base: BaseModel) -> Any:
    """An autoencoder that takes the place of a base model's own.

    Raises:
        StepError: it is missing or unfit, or its latents are of another shape.
    """
    import torch
    from diffusers import AutoencoderKL

    folder = locate(weights)
    try:
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise StepError(f"autoencoder {weights.name!r} at {folder} is unfit: {error}") from error
    own = base.vae.config
    shapes = [(c.latent_channels, len(c.block_out_channels)) for c in (own, vae.config)]
    if shapes[0] != shapes[1]:
        raise StepError(
            f"autoencoder {weights.name!r} has {shapes[1][0]} latent channels and {shapes[1][1]} "
            f"levels, base model {base.name!r} needs {shapes[0][0]} and {shapes[0][1]}"
        )
    return vae


def _quiet_loading() -> None:
    """Keep the libraries' own progress bars, which last milliseconds, out of the logs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
