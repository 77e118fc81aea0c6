"""Identity guidance: sampling along a score that leans towards the face of an identity.

    eps' = eps - sqrt(1 - abar_t) w(t) d<y, phi(x0(x_t))> / d x_t

y is the mean direction of the identity's photographs, phi the guide's embedding of the face in the
decoded estimate, x0 the estimate of the clean latents; where no face is found nothing is added.

Negative guidance leads away from what another person would give, eps' = eps + w (eps - eps_other).

Source: ID3 (Xu et al., NeurIPS 2024), Eq. 8, whose details are inferred; NegFaceDiff (Caldeira et
al., 2025), here beside guidance by the prompt. Nothing of either belongs to one family of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import DECODE_CHUNK, BaseModel
from pipeline_steps.diffusion.guide import Guide, identity_term, load_guide
from pipeline_steps.diffusion.objectives import (
    V_PREDICTION,
    id_weight,
    identity_loss,
    predict_x0,
    timestep_weight,
)
from pipeline_steps.diffusion.sampling.gate import centres, embeddings_of
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import IdentityGuidanceSettings, SampleSettings

AWAY = "away_from"  # column of whom negative guidance leads an image away from
# t of each sample and T -> float64 [n]
SCHEDULES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "id3": id_weight,
    "quadratic": timestep_weight,
    "constant": lambda t, steps: torch.ones_like(t, dtype=torch.float64),
}


@dataclass(frozen=True)
class IdentityGuidance:
    """Who images shall resemble, and how strongly.

    Attributes:
        settings: Weight, schedule, interval, and through what the gradient goes.
        guide: Detector and recogniser.
        targets: Identity to y, float [d] on the CPU; NaN: that identity is not guided.
    """

    settings: IdentityGuidanceSettings
    guide: Guide
    targets: Mapping[str, Tensor]

    def active(self, base: BaseModel, t: float) -> bool:
        """Whether a timestep is guided."""
        low, high = self.settings.interval
        return low <= t / base.train_timesteps <= high

    def adjusted(
        self,
        base: BaseModel,
        identities: Sequence[str],
        t: float,
        noisy: Tensor,
        predict: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The network's output (epsilon or v), leaning towards the identities.

        Args:
            base: Base model.
            identities: Whom each image shows.
            t: Timestep of all images, in [0, T).
            noisy: x_t, variance preserving, float [n, c, h, w].
            predict: x_t -> the network's output, guided by the prompt; differentiable where the
                gradient goes through the network.
        """
        through = self.settings.gradient == "network"
        abar = base.alphas_cumprod[round(t)].to(noisy.device).expand(len(noisy))
        leaf = noisy.detach().requires_grad_(through)
        with torch.set_grad_enabled(through):
            output = predict(leaf)
            estimate = predict_x0(leaf, output, abar, base.prediction_type)
        targets = torch.stack([self.targets[name] for name in identities])
        times = torch.full((len(noisy),), float(t), dtype=torch.float64, device=noisy.device)
        weights = self.settings.weight * SCHEDULES[self.settings.schedule](
            times, base.train_timesteps
        )
        with torch.enable_grad():
            term = identity_term(
                estimate,
                term=lambda anchor, positive, negative, margin: identity_loss(anchor, positive),
                decode=base.decode,
                guide=self.guide,
                positives=targets,
                negatives=targets,
                margin=0.0,
                weights=weights,
                chunk=DECODE_CHUNK.get(base.device.type, 1),
            )
        # The loss is 1 - <y, phi>: its gradient is the likeness's with the other sign.
        signal, noise = (part.to(noisy.dtype)[:, None, None, None] for part in (abar, 1 - abar))
        if through:
            [slope] = torch.autograd.grad(estimate, leaf, term.gradient)
            if base.prediction_type == V_PREDICTION:
                # Where x_t is noise alone no change of it is a change of the face.
                slope = torch.where(signal > 0, slope / signal.sqrt(), 0.0)
        else:  # what the network predicts is taken as given; v's factors cancel
            slope = term.gradient
            if base.prediction_type != V_PREDICTION:
                slope = signal.rsqrt() * slope
        return output.detach() + noise.sqrt() * slope


def open_guidance(
    frozen: Frozen[SampleSettings], dataset: Path, subjects: Sequence[Subject], device: str
) -> IdentityGuidance:
    """The guidance that a configuration of the sample step asks for.

    Raises:
        ValueError: it asks for none.
        StepError: weights or embeddings are missing or unfit, or by another network.
    """
    settings = frozen.settings.identity_guidance
    if settings is None:
        raise ValueError("the configuration has no identity guidance")
    return IdentityGuidance(
        settings,
        load_guide(frozen.weights["recogniser"], device, settings.min_face_size),
        {
            identity: torch.from_numpy(centre)
            for identity, centre in centres(frozen, dataset, subjects).items()
        },
    )


def leading(
    frozen: Frozen[SampleSettings], dataset: Path, subjects: Sequence[Subject]
) -> dict[str, str]:
    """Identity to the hash of the embeddings that its images are led by."""
    return {one.identity: sha256_file(embeddings_of(frozen, dataset, one)) for one in subjects}


def others_of(subjects: Sequence[Subject], seed: int) -> dict[str, str]:
    """Identity to another one, for negative guidance: the next in a circle in random order.

    Who joins or leaves the study changes one other person's, and shares change nobody's.

    Raises:
        StepError: there is nobody else.
    """
    if len(subjects) < 2:
        raise StepError("sample.negative_guidance needs two people or more: set it to 0")
    circle = sorted((one.identity for one in subjects), key=lambda name: seed_for(seed, AWAY, name))
    return dict(zip(circle, [*circle[1:], circle[0]], strict=True))
