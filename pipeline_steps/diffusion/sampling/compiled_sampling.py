"""A compiled denoising network for sampling, which gives way to the network itself if it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.diffusion.sampling.sampler import Predict
from pipeline_steps.diffusion.training.compiling import compiled_networks
from pipeline_steps.diffusion.training.runtime import Runtime, Switch
from pipeline_steps.runtime.logs import get_logger


def compiled_predict(base: BaseModel, switch: Switch) -> Predict | None:
    """``base.predict`` with a compiled network; None where the switch leaves it as it is."""
    network, _ = compiled_networks(base, Runtime(compile=switch))
    return None if network is None else with_fallback(base, network)


def with_fallback(base: BaseModel, network: Callable[..., Any]) -> Predict:
    """``base.predict`` through another network until that fails; then a warning, and without."""
    works = True

    def predict(noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        nonlocal works
        if works:
            try:
                # A replayed graph's output is overwritten by the next replay.
                return base.predict(noisy, timesteps, condition, network).clone()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                works = False
                get_logger("sample").warning("compiling failed, going on without: %s", error)
        return base.predict(noisy, timesteps, condition)

    return predict
