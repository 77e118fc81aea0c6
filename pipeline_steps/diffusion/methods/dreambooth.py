"""DreamBooth (Ruiz et al., CVPR 2023): noise prediction with prior preservation, nothing else."""

from __future__ import annotations

from pipeline_steps.diffusion.methods.family import ADAPTERS, Method

METHOD = Method(ADAPTERS)
