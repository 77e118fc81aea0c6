"""The losses of one step of all identities, and their gradients.

Each identity's loss is the noise prediction error on its images and, weighted, on prior images, and
with most methods an identity term: the estimate of the clean latents is decoded, faces are found,
and where there is one the term flows back through guide, crop and autoencoder.

Source: ID-Booth, Eq. 4-9 (corrected), DreamBooth, PortraitBooth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Runtime,
    compiled_networks,
    to_uint8,
)
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.objectives import (
    add_noise,
    noise_prediction_loss,
    predict_x0,
    prediction_target,
    timestep_weight,
)
from pipeline_steps.diffusion.training.data import LatentSet, Recipe, StepNoise
from pipeline_steps.diffusion.training.guide import Guide
from pipeline_steps.io.tensors import send

Term = Callable[[Tensor, Tensor, Tensor, float], Tensor]

LOSSES = ("instance", "prior", "identity", "face_found")


class FleetLoss:
    """The constant parts of a step: images, prompts, networks. Its adapters belong to the caller.

    Arguments are those of ``fleet.Fleet``; the base model's network carries the adapters of the
    subjects, in their order.

    Raises:
        ValueError: the method needs a guide or embeddings that are not given.
    """

    def __init__(
        self,
        base: BaseModel,
        subjects: Mapping[str, LatentSet],
        prior: LatentSet,
        recipe: Recipe,
        guide: Guide | None,
        runtime: Runtime,
    ) -> None:
        self.term = METHODS[recipe.method].identity_term
        if self.term is not None:
            given = [images.embeddings is not None for images in (prior, *subjects.values())]
            if guide is None or not all(given):
                raise ValueError(f"{recipe.method} needs a guide, and embeddings of all images")
        self.base, self.subjects, self.prior = base, subjects, prior
        self.settings, self.guide, self.runtime = recipe.settings, guide, runtime
        self._unet, self._decode = compiled_networks(base, runtime.compile)
        b = recipe.settings.batch_size
        pairs = [[own.prompt] * b + [prior.prompt] * b for own in subjects.values()]
        self.condition = base.encode_prompts(list(chain.from_iterable(pairs)))

    @property
    def compiled(self) -> bool:
        """Whether networks run compiled."""
        return self._unet is not None

    def stop_compiling(self) -> None:
        """Run them as they are from now on."""
        self._unet = self._decode = None

    def backward(self, drawn: StepNoise) -> Tensor:
        """Leave all identities' gradients with the adapters' layers.

        Returns:
            float [K, 4] on the device, in the order of ``LOSSES``.
        """
        settings, base = self.settings, self.base
        k, b = drawn.instance.shape
        clean = self._clean_latents(drawn)
        noise = send(drawn.noise.flatten(0, 1).to(clean.dtype), clean.device)
        timesteps = send(drawn.timesteps.flatten(), clean.device)
        abar = base.alphas_cumprod[timesteps]
        noisy = add_noise(clean, noise, abar)
        with self._arithmetic():
            output = base.predict(noisy, timesteps, self.condition, self._unet)
        target = prediction_target(clean, noise, abar, base.prediction_type)
        errors = noise_prediction_loss(output, target).view(k, 2, b).mean(dim=2)
        total = (errors[:, 0] + settings.prior_weight * errors[:, 1]).sum()
        report = torch.zeros(k, len(LOSSES), device=clean.device)
        report[:, :2] = errors.detach()
        if self.term is not None:
            # No mask: counting what it selects would wait for the device.
            z_t, predicted, abar_t, t = (
                whole.unflatten(0, (k, 2, b))[:, 0].flatten(0, 1)
                for whole in (noisy, output, abar, timesteps)
            )
            estimate = predict_x0(z_t, predicted, abar_t, base.prediction_type)
            positives, negatives = self._embeddings(drawn)
            with self._arithmetic():
                result = identity_term(
                    estimate,
                    term=self.term,
                    decode=self._decode or base.decode,
                    guide=_present(self.guide),
                    positives=positives,
                    negatives=negatives,
                    margin=settings.margin or 0.0,
                    weights=self._identity_weights(t),
                    chunk=self.runtime.chunk_on(base.device),
                    redecode=self.runtime.redecode,
                )
            # Its derivative by the estimate is the term's gradient; the chain goes on from there.
            total = total + (estimate * result.gradient).sum()
            report[:, 2] = result.values.view(k, b).mean(dim=1)
            report[:, 3] = result.found.view(k, b).float().mean(dim=1)
        total.backward()  # type: ignore[no-untyped-call]
        return report

    def _clean_latents(self, drawn: StepNoise) -> Tensor:
        """z_0 of the samples of all identities, [K * 2b, c, h, w]."""
        latents = []
        for subject, instance, prior, noise in zip(
            self.subjects.values(), drawn.instance, drawn.prior, drawn.posterior, strict=True
        ):
            mean = torch.cat([subject.mean[instance], self.prior.mean[prior]])
            std = torch.cat([subject.std[instance], self.prior.std[prior]])
            latents.append(mean + std * noise.to(std))
        return send(torch.cat(latents), self.base.device)

    def _embeddings(self, drawn: StepNoise) -> tuple[Tensor, Tensor]:
        """Positives and negatives of the instance samples, each [K * b, d]."""
        positives = [
            _present(subject.embeddings)[rows]
            for subject, rows in zip(self.subjects.values(), drawn.instance, strict=True)
        ]
        return torch.cat(positives), _present(self.prior.embeddings)[drawn.prior.flatten()]

    def _identity_weights(self, timesteps: Tensor) -> Tensor:
        """Factor of each instance sample's identity term, float64 [K * b]."""
        settings = self.settings
        weights = timestep_weight(timesteps, self.base.train_timesteps)
        if settings.timestep_weighting != "quadratic":
            weights = torch.ones_like(weights)
        return weights * (settings.identity_weight or 0.0) / settings.batch_size

    def _arithmetic(self) -> Any:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.base.device.type, dtype=torch.bfloat16)


@dataclass(frozen=True)
class IdentityTerm:
    """The identity term of n samples.

    Attributes:
        values: Unweighted losses, float [n]; 0 where no face was found.
        gradient: d(sum of weight * value) / d(latents), float like the latents.
        found: Where a face was found, bool [n].
    """

    values: Tensor
    gradient: Tensor
    found: Tensor


def identity_term(
    latents: Tensor,
    *,
    term: Term,
    decode: Callable[[Tensor], Tensor],
    guide: Guide,
    positives: Tensor,
    negatives: Tensor,
    margin: float,
    weights: Tensor,
    chunk: int,
    redecode: bool = False,
) -> IdentityTerm:
    """Evaluate an identity term on estimated clean latents, for all identities at once.

    Computing dL/dz_0 here, apart from the denoising network's graph, lets the autoencoder run in
    small pieces and skip those without a face; both exact.

    Args:
        latents: Estimates of z_0, float [n, c, h, w]; their graph is not followed.
        term: (anchor, positive, negative, margin) -> losses [n], of the method.
        decode: Latents -> images [n, 3, H, W] about [-1, 1], differentiable.
        guide: Detector and recogniser.
        positives: Embeddings of the samples' training images, [n, d] on the CPU. A sample whose
            training image has none (NaN) counts as one without a face.
        negatives: Embeddings of the prior images of the same step, [n, d] on the CPU.
        margin: Of the triplet loss; passed on.
        weights: Factor of each sample's loss in the gradient, float [n].
        chunk: Samples decoded together.
    """
    leaf = latents.detach().requires_grad_()
    # One graph per piece, so that a piece without a face is dropped without a backward pass.
    parts = leaf.split(chunk)
    with torch.set_grad_enabled(not redecode):
        pieces: list[Tensor | None] = [decode(part).clamp(-1.0, 1.0) for part in parts]
    # One detection, and one wait for the device, for the whole fleet.
    boxes = guide.boxes(torch.cat([to_uint8(piece) for piece in pieces if piece is not None]))
    known = positives.isfinite().all(dim=1).tolist()
    boxes = [box if has else None for box, has in zip(boxes, known, strict=True)]
    values = latents.new_zeros(len(latents))
    for i, part in enumerate(parts):
        start = i * chunk
        rows = [start + j for j in range(len(part)) if boxes[start + j] is not None]
        piece, pieces[i] = pieces[i], None  # its graph is freed after its backward pass
        if not rows or piece is None:
            continue
        if redecode:
            piece = decode(part).clamp(-1.0, 1.0)
        where = send(torch.tensor(rows), latents.device)
        found_boxes = torch.from_numpy(np.stack([boxes[row] for row in rows]))  # type: ignore[misc]
        anchors = guide.embed(piece[where - start], send(found_boxes, latents.device))
        # Cosines of unit vectors in 16 bits are off by 0.004.
        anchors = anchors.to(torch.promote_types(anchors.dtype, torch.float32))
        losses = term(
            anchors,
            send(positives[rows], anchors.device).to(anchors.dtype),
            send(negatives[rows], anchors.device).to(anchors.dtype),
            margin,
        )
        (losses * weights[where].to(losses.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        values[where] = losses.detach().to(values.dtype)
    gradient = torch.zeros_like(latents) if leaf.grad is None else leaf.grad
    found = torch.tensor([box is not None for box in boxes])
    return IdentityTerm(values, gradient, send(found, latents.device))


def _present(value: Any) -> Any:
    if value is None:
        raise ValueError("an identity term needs face embeddings and a guide")
    return value
