"""The base model as it is: sampled, never trained; it knows nobody."""

from __future__ import annotations

from pipeline_steps.diffusion.methods.family import UNTUNED, Method

METHOD = Method(UNTUNED)
