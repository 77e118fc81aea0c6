"""Base models: one module per architecture, named like it, with a ``load(folder, ...)`` function."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.weights import locate

if TYPE_CHECKING:
    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.settings.base import Weights


def load_base_model(weights: Weights, device: str = "cpu", precision: str = "fp32") -> BaseModel:
    """Load a registry entry of task ``base_model``; all its networks are frozen.

    Args:
        weights: ``architecture`` names the module (dashes for underscores), e.g.
            "stable-diffusion"; ``source`` is a pipeline folder as diffusers writes it;
            ``options.resolution`` is the image side in pixels.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16": the type of the frozen weights.

    Raises:
        StepError: the architecture is unknown, or the weights are missing or unfit.
    """
    name = f"{__name__}.{weights.architecture.replace('-', '_')}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise StepError(
            f"weights {weights.name!r}: architecture {weights.architecture!r} is no base model; "
            "write e.g. stable-diffusion"
        ) from error
    resolution = weights.options.get("resolution")
    if not isinstance(resolution, int):
        raise StepError(f"weights {weights.name!r}: options.resolution (pixels) is missing")
    folder = locate(weights)
    _quiet_loading()
    try:
        loaded: BaseModel = module.load(folder, name=weights.name, resolution=resolution)
    except (OSError, ValueError) as error:
        raise StepError(f"base model {weights.name!r} at {folder} is unfit: {error}") from error
    return loaded.to(device, precision)


def _quiet_loading() -> None:
    """Keep the libraries' own progress bars, which last milliseconds, out of the logs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
