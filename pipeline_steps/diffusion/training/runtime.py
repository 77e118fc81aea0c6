"""How a fleet runs: what changes speed and memory, and no result beyond float error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

# Where larger pieces of the autoencoder stop to pay: a CPU's caches overflow, a GPU is full.
DECODE_CHUNK = {"cpu": 2, "cuda": 8}

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Runtime:
    """How a fleet runs.

    Attributes:
        decode_chunk: Images that the autoencoder decodes together; None: as suits the device.
        redecode: Decode without a graph to look for faces, and again with one, piece by piece,
            where there is one: memory for one piece's graph instead of all, for a decoding more.
        compile: Compile the denoising network and the decoder and, on a GPU, replay the former's
            kernels as CUDA graphs. "auto": on a GPU only. Where compiling fails, a warning is
            given and training goes on without.
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
