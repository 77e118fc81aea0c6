"""Base models: a module here with a function ``load`` for each architecture, named after it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.weights import locate, open_network
from pipeline_steps.runtime.errors import StepError

if TYPE_CHECKING:
    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.io.weights import Weights


# Opened by name, so that a new one, or a change of one, makes nothing of the others again.
ARCHITECTURES = [
    module.name.replace("_", "-") for module in iter_modules(__path__) if module.name != "base"
]


def load_base_model(weights: Weights, device: str = "cpu", precision: str = "fp32") -> BaseModel:
    """Load a registry entry of task ``base_model``; all its networks are frozen.

    Args:
        weights: ``architecture`` is one of ``ARCHITECTURES``; ``source`` is a pipeline folder as
            diffusers writes it; ``options.resolution`` is the image side in pixels. A component
            ``vae`` replaces the folder's autoencoder, together with its latent scale.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16": the type of the frozen weights.

    Raises:
        StepError: the architecture is unknown, or the weights are missing or unfit.
    """
    if weights.architecture not in ARCHITECTURES:
        raise StepError(
            f"weights {weights.name!r}: architecture {weights.architecture!r} is no base model; "
            f"write {' or '.join(ARCHITECTURES)}"
        )
    resolution = weights.resolution()
    folder = locate(weights)
    _quiet_loading()
    module = import_module(f"{__name__}.{weights.architecture.replace('-', '_')}")
    try:
        base: BaseModel = module.load(folder, name=weights.name, resolution=resolution)
    except (OSError, ValueError, RuntimeError) as error:
        raise StepError(f"base model {weights.name!r} at {folder} is unfit: {error}") from error
    if "vae" in weights.components:
        base.vae = _autoencoder(weights.components["vae"], base)
    return base.to(device, precision)


def _autoencoder(weights: Weights, base: BaseModel) -> Any:
    """An autoencoder that takes the place of a base model's own.

    Raises:
        StepError: it is missing or unfit, or its latents are of another shape.
    """
    from diffusers import AutoencoderKL

    folder = locate(weights)
    try:
        vae = open_network(AutoencoderKL, folder)
    except (OSError, ValueError, RuntimeError) as error:
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
