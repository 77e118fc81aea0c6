"""ID3: a denoiser that is told a face embedding and attributes, see ``diffusion.id3``."""

from __future__ import annotations

from pipeline_steps.diffusion.methods.family import EMBEDDINGS, Method

METHOD = Method(EMBEDDINGS)
