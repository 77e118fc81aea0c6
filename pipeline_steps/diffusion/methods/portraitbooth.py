"""PortraitBooth (Peng et al., CVPR 2024): DreamBooth plus 1 - cos to the training image's face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_steps.diffusion.methods.family import ADAPTERS, IDENTITY_SETTINGS, Method
from pipeline_steps.diffusion.objectives import identity_loss

if TYPE_CHECKING:
    from torch import Tensor


def term(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Eq. 7 of ID-Booth; the prior image's face and the margin have no part in it."""
    return identity_loss(anchor, positive)


METHOD = Method(ADAPTERS, term, uses=IDENTITY_SETTINGS)
