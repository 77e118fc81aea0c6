"""How the networks run: whole or in pieces, compiled or not; no result beyond float error follows.

Compiled networks run on a GPU by default. Where compiling fails, a warning is given and the network
goes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.runtime.logs import get_logger

# Where larger pieces of the autoencoder stop to pay: a CPU's caches overflow, a GPU is full.
DECODE_CHUNK = {"cpu": 2, "cuda": 8}

Switch = Literal["auto", "on", "off"]
Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]  # see BaseModel.predict


@dataclass(frozen=True)
class Runtime:
    """How a fleet runs.

    Attributes:
        decode_chunk: Images that the autoencoder decodes together; None: as suits the device.
        redecode: Decode without a graph to look for faces, and again with one, piece by piece,
            where there is one: memory for one piece's graph instead of all, for a decoding more.
        compile: Compile the denoising network and the decoder and, on a GPU, replay the former's
            kernels as CUDA graphs. "auto": on a GPU only.
        checkpointing: Recompute the network's activations in the backward pass: less memory for
            about a third more time.
    """

    decode_chunk: int | None = None
    redecode: bool = False
    compile: Switch = "auto"
    checkpointing: bool = False

    def chunk_on(self, device: torch.device | str) -> int:
        """Images that the autoencoder decodes together on a device."""
        return self.decode_chunk or DECODE_CHUNK.get(torch.device(device).type, 1)


def compiled_networks(
    base: BaseModel, switch: Switch
) -> tuple[Callable[..., Any] | None, Callable[[Tensor], Tensor] | None]:
    """The denoising network and ``base.decode``, compiled at their first call; None, None: as is.

    On a GPU the denoising network's kernels, forward and backward, are recorded and replayed as
    CUDA graphs: its shapes are the same in every step. The decoder's pieces may differ in size and
    are compiled without.
    """
    on_gpu = base.device.type == "cuda"
    if switch == "off" or (switch == "auto" and not on_gpu):
        return None, None
    torch.compiler.reset()  # an earlier fleet's adapters are other modules
    network = torch.compile(base.unet, mode="reduce-overhead" if on_gpu else "default")

    def unet(*args: Any, **kwargs: Any) -> Any:
        # Outputs of the last step's graphs may be overwritten from here on.
        torch.compiler.cudagraph_mark_step_begin()
        return network(*args, **kwargs)

    return unet, torch.compile(base.decode)


def compiled_predict(base: BaseModel, switch: Switch) -> Predict | None:
    """``base.predict`` with a compiled network; None where the switch leaves it as it is."""
    network, _ = compiled_networks(base, switch)
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
