"""The losses of one step of all identities, and their gradients.

Each identity's loss is the noise prediction error on its images and, weighted, on prior images, and
with most methods an identity term: the estimate of the clean latents is decoded, faces are found,
and where there is one the term flows back through guide, crop and autoencoder.

Source: ID-Booth, Eq. 4-9 (corrected), DreamBooth, PortraitBooth.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Runtime,
    compiled_networks,
)
from pipeline_steps.diffusion.guide import Guide, identity_term
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.objectives import (
    add_noise,
    noise_prediction_loss,
    predict_x0,
    prediction_target,
    timestep_weight,
)
from pipeline_steps.diffusion.training.data import LatentSet, Recipe, StepNoise
from pipeline_steps.io.tensors import send

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


def _present(value: Any) -> Any:
    if value is None:
        raise ValueError("an identity term needs face embeddings and a guide")
    return value
