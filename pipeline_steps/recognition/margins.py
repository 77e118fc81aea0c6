"""Margin softmax losses of face recognition.

CosFace: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018,
Eq. 4. ArcFace: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
CVPR 2019, Eq. 3. AdaFace: Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition",
CVPR 2022, Eq. 11 to 14.

A margin is one function of the cosines and the embeddings' norms, and one entry in MARGINS.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# (cosine to the own centre [n], norm of the raw embedding [n], margin) -> penalised cosine [n].
Margin = Callable[[Tensor, Tensor, float], Tensor]

# The derivative of the sine of the angle is infinite at an angle of exactly 0, that of the angle
# itself at 0 and pi.
SMALLEST_SQUARED_SINE = 1e-9
LARGEST_COSINE = 1.0 - 1e-6
SMALLEST_SPREAD = 1e-3  # added to the norms' standard deviation, as in AdaFace's code


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


class AdaFace(nn.Module):
    """cos(theta + g_angle) - g_add, with margins that follow the image's quality.

    g_angle = -m z and g_add = m z + m, where z in [-1, 1] is the norm of the raw embedding, centred
    and scaled by running statistics: z = clip(h (norm - mean) / sd, -1, 1). So a poor image
    (z = -1) meets ArcFace's margin, an average one (z = 0) CosFace's. All norms equal: CosFace for
    everybody, which is what becomes of it on features that were normalised before.

    Running mean and standard deviation start at the first batch's, move in training mode only, and
    carry no gradient.

    Args:
        concentration: h.
        momentum: weight of the past in the running statistics.
    """

    mean: Tensor
    sd: Tensor
    batches: Tensor

    def __init__(self, concentration: float = 0.333, momentum: float = 0.99) -> None:
        super().__init__()
        self.concentration = concentration
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("sd", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def quality(self, norms: Tensor) -> Tensor:
        """Norms [n] -> z [n] in [-1, 1]; in training mode the statistics take the norms in."""
        if self.training:
            # No branch on a value: that would wait for the device.
            past = torch.where(self.batches > 0, self.momentum, 0.0)
            self.mean.lerp_(norms.mean(), 1.0 - past)
            self.sd.lerp_(norms.std(), 1.0 - past)
            self.batches += 1
        z = self.concentration * (norms - self.mean) / (self.sd + SMALLEST_SPREAD)
        return z.clamp(-1.0, 1.0)

    def forward(self, target: Tensor, norms: Tensor, margin: float) -> Tensor:
        """Cosines to the own centres [n] and norms [n] -> penalised cosines [n]."""
        z = self.quality(norms)
        angle = target.clamp(-LARGEST_COSINE, LARGEST_COSINE).acos()
        moved = (angle - margin * z).clamp(0.0, math.pi)
        return moved.cos() - (margin * z + margin)


MARGINS: dict[str, Callable[[], Margin]] = {
    "cosface": lambda: cosface,
    "arcface": lambda: arcface,
    "adaface": AdaFace,
}


class MarginHead(nn.Module):
    """Class centres on the unit sphere and the margin logits towards them.

    Args:
        embedding_dim: length of the embeddings.
        n_identities: number of training identities.
        loss: a name in MARGINS.
        scale: s, by which cosines are multiplied.
        margin: m; a cosine (CosFace), radians (ArcFace), or both (AdaFace).

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
        self.penalise = MARGINS[loss]()
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
