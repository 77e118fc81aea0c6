"""Margin losses of face recognition: logits from embeddings and one learned centre per identity.

CosFace: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018,
Eq. 4. ArcFace: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
CVPR 2019, Eq. 3.

A margin is one function of the cosines and one entry in MARGINS.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# (cosine to the own centre [n], norm of the raw embedding [n], margin) -> penalised cosine [n].
# The norms are there for margins that adapt to image quality.
Margin = Callable[[Tensor, Tensor, float], Tensor]

# The derivative of the sine of the angle is infinite at an angle of exactly 0.
SMALLEST_SQUARED_SINE = 1e-9


def cosface(target: Tensor, norms: Tensor, margin: float) -> Tensor:
    """cos(theta) - m."""
    return target - margin


def arcface(target: Tensor, norms: Tensor, margin: float) -> Tensor:
    """cos(theta + m), continued by cos(theta) - m sin(m) where theta + m would pass pi.

    The continuation keeps the logit falling with theta (cos would rise again beyond pi).
    """
    sine = (1.0 - target.square()).clamp_min(SMALLEST_SQUARED_SINE).sqrt()
    shifted = target * math.cos(margin) - sine * math.sin(margin)
    continued = target - margin * math.sin(margin)
    return torch.where(target > math.cos(math.pi - margin), shifted, continued)


MARGINS: dict[str, Margin] = {"cosface": cosface, "arcface": arcface}


class MarginHead(nn.Module):
    """Class centres on the unit sphere and the margin logits towards them.

    Args:
        embedding_dim: length of the embeddings.
        n_identities: number of training identities.
        loss: a name in MARGINS.
        scale: s, by which cosines are multiplied.
        margin: m; a cosine (CosFace) or radians (ArcFace).

    Raises:
        ValueError: unknown loss, or fewer than two identities.
    """

    def __init__(
        self,
        embedding_dim: int,
        n_identities: int,
        *,
        loss: str = "cosface",
        scale: float = 64.0,
        margin: float = 0.35,
    ) -> None:
        super().__init__()
        if loss not in MARGINS:
            raise ValueError(f"unknown margin loss {loss!r}: choose one of {sorted(MARGINS)}")
        if n_identities < 2:
            raise ValueError(f"a margin loss needs at least 2 identities, got {n_identities}")
        self.penalise = MARGINS[loss]
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(torch.empty(n_identities, embedding_dim).normal_(0.0, 0.01))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines [n, n_identities] between raw embeddings [n, embedding_dim] and the centres."""
        cosines = functional.normalize(embeddings.float()) @ functional.normalize(self.weight).T
        return cosines.clamp(-1.0, 1.0)

    def logits(self, cosines: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        """Scaled logits [n, n_identities] with the margin at each row's own identity.

        Args:
            cosines: [n, n_identities].
            labels: int64 [n] in 0 ... n_identities - 1.
            norms: [n], Euclidean norms of the raw embeddings.
        """
        own = labels.unsqueeze(1)
        penalised = self.penalise(cosines.gather(1, own).squeeze(1), norms, self.margin)
        return self.scale * cosines.scatter(1, own, penalised.unsqueeze(1))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Raw embeddings [n, embedding_dim] and labels int64 [n] -> logits [n, n_identities]."""
        norms = embeddings.detach().float().norm(dim=1)
        return self.logits(self.cosines(embeddings), labels, norms)
