"""Fine-tuning of many identities at once over one frozen denoising network.

Each step draws one batch per identity, runs the network once for all of them, and sums the losses
over identities: slice k of the stacked adapters gets identity k's gradient alone. Gradient clipping
and random draws are per identity, so a cohort changes the speed and not the result.

Source: ID-Booth, Eq. 4-9 (corrected), DreamBooth, PortraitBooth; LoRA, AdamW, cosine schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.adapters import Adapter, AdapterBank
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.draws import Draw, draw_step, stack_draws
from pipeline_steps.diffusion.face_region import FaceEmbedder
from pipeline_steps.diffusion.identity_term import identity_term
from pipeline_steps.diffusion.objectives import (
    METHODS,
    add_noise,
    noise_prediction_loss,
    predict_x0,
    prediction_target,
    timestep_weight,
)
from pipeline_steps.seeds import torch_generator
from pipeline_steps.settings.finetune import FinetuneSettings

LOSSES = ("instance", "prior", "identity", "face_found")


@dataclass(frozen=True)
class LatentSet:
    """Images in the autoencoder's latent space, encoded once.

    Attributes:
        mean: Posterior mean in the denoising network's scale, float [n, c, h, w].
        std: Posterior standard deviation, the same shape.
        embeddings: Face embeddings, float [n, d] on the CPU, NaN for an image without a face; None
            where the method needs none.
        prompt: The one prompt of all images.
    """

    mean: Tensor
    std: Tensor
    embeddings: Tensor | None
    prompt: str

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class FineTuned:
    """Result of one identity.

    Attributes:
        adapter: Layer name to A [r, in] and B [out, r].
        losses: Name to one value per step; "identity" is unweighted, 0 without a face;
            "face_found" is the share of the step's instance samples with a face.
        finite: Whether every weight is a number. One identity's divergence touches no other.
    """

    adapter: Adapter
    losses: dict[str, list[float]]
    finite: bool


def fine_tune(
    base: BaseModel,
    method: str,
    subjects: dict[str, LatentSet],
    prior: LatentSet,
    settings: FinetuneSettings,
    *,
    seed: int,
    faces: FaceEmbedder | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> dict[str, FineTuned]:
    """Fine-tune adapters of several identities together.

    Args:
        base: Frozen base model; its network is as before on return.
        method: A key of ``objectives.METHODS``.
        subjects: Identity to its images.
        prior: Prior preservation images.
        settings: Resolved for this base model and method.
        seed: The study seed.
        faces: Needed by methods with an identity term.
        on_step: Called after each step with the number of steps done and the step's losses,
            float [K, 4] in the order of ``LOSSES`` on the base model's device.

    Returns:
        Identity to its result, independent of the other identities beyond float error.

    Raises:
        ValueError: the method needs faces or embeddings that are not given.
    """
    if METHODS[method].identity_term is not None:
        given = [images.embeddings is not None for images in (prior, *subjects.values())]
        if faces is None or not all(given):
            raise ValueError(f"{method} needs face embeddings of all images and a face embedder")
    bank = AdapterBank(
        base.unet,
        count=len(subjects),
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets,
    )
    try:
        for k, identity in enumerate(subjects):
            stream = torch_generator(seed, "finetune", base.name, identity, "lora")
            bank.initialise(k, stream, settings.init)
        fleet = _Fleet(base, method, subjects, prior, settings, seed, faces, bank)
        log = torch.zeros(settings.steps, len(subjects), len(LOSSES), device=base.device)
        for step in range(settings.steps):
            log[step] = fleet.step(step)
            if on_step is not None:
                on_step(step + 1, log[step])
        history = log.cpu()
        finite = bank.weights.detach().isfinite().all(dim=1).cpu()
        return {
            identity: FineTuned(
                adapter=bank.adapter(k),
                losses={name: history[:, k, i].tolist() for i, name in enumerate(LOSSES)},
                finite=bool(finite[k]),
            )
            for k, identity in enumerate(subjects)
        }
    finally:
        bank.remove()


class _Fleet:
    """K identities in training: the constant parts of a step, the adapters and their optimiser."""

    def __init__(
        self,
        base: BaseModel,
        method: str,
        subjects: dict[str, LatentSet],
        prior: LatentSet,
        settings: FinetuneSettings,
        seed: int,
        faces: FaceEmbedder | None,
        bank: AdapterBank,
    ) -> None:
        self.base = base
        self.term = METHODS[method].identity_term
        self.subjects = subjects
        self.prior = prior
        self.settings = settings
        self.seed = seed
        self.faces = faces
        self.bank = bank
        b = settings.batch_size
        self.condition = base.encode_prompts(
            [
                prompt
                for subject in subjects.values()
                for prompt in [subject.prompt] * b + [prior.prompt] * b
            ]
        )
        self.optimiser = torch.optim.AdamW(
            [bank.weights],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )

    def step(self, step: int) -> Tensor:
        """One optimiser step of all identities; returns the losses, float [K, 4]."""
        losses, settings = self._backward(self._draw(step)), self.settings
        clip_rows(self.bank.collect_gradients(), settings.clip_norm)
        rate = learning_rate(settings.learning_rate, settings.schedule, step, settings.steps)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        return losses

    def _draw(self, step: int) -> Draw:
        return stack_draws(
            [
                draw_step(
                    self.seed,
                    self.base.name,
                    identity,
                    step,
                    n_instance=len(subject),
                    n_prior=len(self.prior),
                    batch_size=self.settings.batch_size,
                    latent_shape=self.base.latent_shape,
                    train_timesteps=self.base.train_timesteps,
                )
                for identity, subject in self.subjects.items()
            ]
        )

    def _backward(self, draw: Draw) -> Tensor:
        """Leave all identities' gradients with the bank's layers; returns the losses [K, 4]."""
        settings, base = self.settings, self.base
        k, b = draw.instance.shape
        clean = self._clean_latents(draw)
        noise = draw.noise.flatten(0, 1).to(clean)
        timesteps = draw.timesteps.flatten().to(clean.device)
        abar = base.alphas_cumprod[timesteps]
        noisy = add_noise(clean, noise, abar)
        with self._arithmetic():
            output = base.predict(noisy, timesteps, self.condition)
        target = prediction_target(clean, noise, abar, base.prediction_type)
        errors = noise_prediction_loss(output, target).view(k, 2, b).mean(dim=2)
        total = (errors[:, 0] + settings.prior_weight * errors[:, 1]).sum()
        report = torch.zeros(k, len(LOSSES), device=clean.device)
        report[:, :2] = errors.detach()
        if self.term is not None:
            instance = (torch.arange(2 * k * b, device=clean.device) % (2 * b)) < b
            estimate = predict_x0(
                noisy[instance], output[instance], abar[instance], base.prediction_type
            )
            positives, negatives = self._embeddings(draw)
            with self._arithmetic():
                result = identity_term(
                    estimate,
                    term=self.term,
                    decode=base.decode,
                    faces=_present(self.faces),
                    positives=positives,
                    negatives=negatives,
                    margin=settings.margin or 0.0,
                    weights=self._identity_weights(timesteps[instance]),
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
        return torch.cat(latents).to(self.base.device)

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


def clip_rows(gradients: Tensor, largest: float) -> Tensor:
    """Scale each row of [K, P] to a norm of at most ``largest``, in place; returns the norms [K].

    What ``torch.nn.utils.clip_grad_norm_`` does for one identity, row by row.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1)
    gradients.mul_((largest / (norms + 1e-6)).clamp(max=1.0)[:, None])
    return norms


def learning_rate(peak: float, schedule: str, step: int, steps: int) -> float:
    """Learning rate of step 0 ... steps - 1; "cosine" falls from the peak to zero, no warm-up."""
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _present(value: Any) -> Any:
    if value is None:
        raise ValueError("an identity term needs face embeddings and a face embedder")
    return value
