"""Compiled versions of a base model's networks, behind one switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.training.runtime import Runtime


def compiled_networks(
    base: BaseModel, runtime: Runtime
) -> tuple[Callable[..., Any] | None, Callable[[Tensor], Tensor] | None]:
    """The denoising network and ``base.decode``, compiled at their first call; None, None: as is.

    On a GPU the denoising network's kernels, forward and backward, are recorded and replayed as
    CUDA graphs: its shapes are the same in every step. The decoder's pieces may differ in size and
    are compiled without.
    """
    on_gpu = base.device.type == "cuda"
    if runtime.compile == "off" or (runtime.compile == "auto" and not on_gpu):
        return None, None
    torch.compiler.reset()  # an earlier fleet's adapters are other modules
    network = torch.compile(base.unet, mode="reduce-overhead" if on_gpu else "default")

    def unet(*args: Any, **kwargs: Any) -> Any:
        # Outputs of the last step's graphs may be overwritten from here on.
        torch.compiler.cudagraph_mark_step_begin()
        return network(*args, **kwargs)

    return unet, torch.compile(base.decode)
