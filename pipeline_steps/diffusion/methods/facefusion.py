"""Face Fusion: fused attention to photographs, see ``face_fusion``; no training for a person."""

from __future__ import annotations

from pipeline_steps.diffusion.methods.family import REFERENCES, Method

METHOD = Method(REFERENCES)
