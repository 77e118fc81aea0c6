"""The losses of one step of all identities, and their gradients.

Source: ID-Booth, Eq. 4-9 (corrected), DreamBooth, PortraitBooth.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.objectives import (
    add_noise,
    noise_prediction_loss,
    predict_x0,
    prediction_target,
    timestep_weight,
)
from pipeline_steps.diffusion.training.compiling import compiled_networks
from pipeline_steps.diffusion.training.draws import Draw
from pipeline_steps.diffusion.training.face_region import FaceEmbedder
from pipeline_steps.diffusion.training.identity_term import identity_term
from pipeline_steps.diffusion.training.latent_set import LatentSet
from pipeline_steps.diffusion.training.runtime import Runtime
from pipeline_steps.io.tensors import send
from pipeline_steps.study.settings.diffusion import FinetuneSettings

LOSSES = ("instance", "prior", "identity", "face_found")


class FleetLoss:
    """The constant parts of a step: images, prompts, networks. Its adapters belong to the caller.

    Args:
        base: Base model whose network carries the adapters of the subjects, in their order.
        method: A key of ``methods.METHODS``.
        subjects: Identity to its images.
        prior: Prior preservation images.
        settings: Resolved for this base model and method.
        faces: Needed by methods with an identity term.
        runtime: How it runs.

    Raises:
        ValueError: the method needs faces or embeddings that are not given.
    """

    def __init__(
        self,
        base: BaseModel,
        method: str,
        subjects: Mapping[str, LatentSet],
        prior: LatentSet,
        settings: FinetuneSettings,
        faces: FaceEmbedder | None,
        runtime: Runtime,
    ) -> None:
        self.term = METHODS[method].identity_term
        if self.term is not None:
            given = [images.embeddings is not None for images in (prior, *subjects.values())]
            if faces is None or not all(given):
                raise ValueError(
                    f"{method} needs face embeddings of all images and a face embedder"
                )
        self.base = base
        self.subjects = subjects
        self.prior = prior
        self.settings = settings
        self.faces = faces
        self.runtime = runtime
        self._unet, self._decode = compiled_networks(base, runtime)
        b = settings.batch_size
        self.condition = base.encode_prompts(
            [
                prompt
                for subject in subjects.values()
                for prompt in [subject.prompt] * b + [prior.prompt] * b
            ]
        )

    @property
    def compiled(self) -> bool:
        """Whether networks run compiled."""
        return self._unet is not None

    def stop_compiling(self) -> None:
        """Run them as they are from now on."""
        self._unet = self._decode = None

    def backward(self, draw: Draw) -> Tensor:
        """Leave all identities' gradients with the adapters' layers.

        Args:
            draw: Of all identities, stacked.

        Returns:
            float [K, 4] on the device, in the order of ``LOSSES``.
        """
        settings, base = self.settings, self.base
        k, b = draw.instance.shape
        clean = self._clean_latents(draw)
        noise = send(draw.noise.flatten(0, 1).to(clean.dtype), clean.device)
        timesteps = send(draw.timesteps.flatten(), clean.device)
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
            positives, negatives = self._embeddings(draw)
            with self._arithmetic():
                result = identity_term(
                    estimate,
                    term=self.term,
                    decode=self._decode or base.decode,
                    faces=_present(self.faces),
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

    def _clean_latents(self, draw: Draw) -> Tensor:
        """A draw of z_0 for the samples of all identities, [K * 2b, c, h, w]."""
        latents = []
        for subject, instance, prior, noise in zip(
            self.subjects.values(), draw.instance, draw.prior, draw.posterior, strict=True
        ):
            mean = torch.cat([subject.mean[instance], self.prior.mean[prior]])
            std = torch.cat([subject.std[instance], self.prior.std[prior]])
            latents.append(mean + std * noise.to(std))
        return send(torch.cat(latents), self.base.device)

    def _embeddings(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Positives and negatives of the instance samples, each [K * b, d]."""
        positives = [
            _present(subject.embeddings)[rows]
            for subject, rows in zip(self.subjects.values(), draw.instance, strict=True)
        ]
        return torch.cat(positives), _present(self.prior.embeddings)[draw.prior.flatten()]

    def _identity_weights(self, timesteps: Tensor) -> Tensor:
        """Factor of each instance sample's identity term, float64 [K * b]."""
        settings = self.settings
        weights = torch.ones(len(timesteps), dtype=torch.float64, device=timesteps.device)
        if settings.timestep_weighting == "quadratic":
            weights = timestep_weight(timesteps, self.base.train_timesteps)
        return weights * (settings.identity_weight or 0.0) / settings.batch_size

    def _arithmetic(self) -> Any:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.base.device.type, dtype=torch.bfloat16)


def _present(value: Any) -> Any:
    if value is None:
        raise ValueError("an identity term needs face embeddings and a face embedder")
    return value
