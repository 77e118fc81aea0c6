"""ID-Booth (Tomasevic et al., FG 2025): DreamBooth plus a triplet loss over faces, Eq. 8."""

from __future__ import annotations

from pipeline_steps.diffusion.methods.family import ADAPTERS, IDENTITY_SETTINGS, Method
from pipeline_steps.diffusion.objectives import triplet_identity_loss

METHOD = Method(ADAPTERS, triplet_identity_loss, uses=IDENTITY_SETTINGS | {"margin"})
