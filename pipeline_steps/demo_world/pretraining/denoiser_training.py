"""Train the embedded denoiser and its text encoder together: noise prediction on cached latents.

Stable Diffusion's noise schedule (scaled-linear betas 0.00085 ... 0.012, 1000 steps) and objective
(Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020), weighted by min(SNR, 5) / SNR
(Hang et al., ICCV 2023), which spends the effort where shape and identity are decided. Averaged
weights are what is kept. Learning rate: warm-up, plateau, then a cosine fall over the last quarter,
so that a run can be lengthened from its checkpoint without repeating the plateau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline_steps.demo_world.pretraining.architectures import denoiser, text_encoder
from pipeline_steps.demo_world.pretraining.training_images import TrainingImages
from pipeline_steps.demo_world.rendering.captions import caption_batch
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for, torch_generator

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TRAIN_TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": FIRST_BETA,
    "beta_end": LAST_BETA,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
SNR_CAP = 5.0
WARM_UP_STEPS = 200
FALL = 0.25  # share of the steps
LAST_RATE = 0.02  # of the peak learning rate
AVERAGING = 0.9993  # decay of the running average, once it is warm
CAPTION_FACTS = ("identity", "male", "expression", "place", "yaw")


@dataclass
class Denoiser:
    """Networks in training and their running averages.

    Attributes:
        unet, text: the networks.
        average: a tensor for each of `parameters()`.
    """

    unet: UNet2DConditionModel
    text: CLIPTextModel
    average: list[torch.Tensor]

    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters, in a fixed order."""
        return [*self.unet.parameters(), *self.text.parameters()]

    @torch.no_grad()
    def use_average(self) -> None:
        """Swap the running average in (and the raw weights out into `average`)."""
        for p, a in zip(self.parameters(), self.average, strict=True):
            raw = p.detach().clone()
            p.copy_(a)
            a.copy_(raw)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the weights after training step `step` (from 0)."""
        decay = min(AVERAGING, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters()], 1 - decay)


def learning_rate_factor(step: int, steps: int) -> float:
    """Learning rate of a step relative to its peak: warm-up, plateau, cosine fall."""
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    into_fall = (step / steps - (1 - FALL)) / FALL
    if into_fall <= 0:
        return rise
    fall = 0.5 * (1 + math.cos(math.pi * min(into_fall, 1.0)))
    return rise * (LAST_RATE + (1 - LAST_RATE) * fall)


def noise_schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """Cumulative products of 1 - beta, and loss weights of mean 1, float32 [1000] each."""
    roots = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, TRAIN_TIMESTEPS)
    alpha_bar = torch.cumprod(1 - roots**2, 0)
    snr = alpha_bar / (1 - alpha_bar)
    weights = snr.clamp(max=SNR_CAP) / snr
    return alpha_bar, weights / weights.mean()


def train_denoiser(
    mean: torch.Tensor,
    std: torch.Tensor,
    scaling_factor: float,
    facts: TrainingImages,
    tokenizer: CLIPTokenizer,
    names: Sequence[str],
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 6e-4,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
) -> Denoiser:
    """Train for `steps` steps, going on from `checkpoint` when it exists.

    Args:
        mean, std: VAE posterior moments float32 [n, 4, h, w], unscaled.
        scaling_factor: of the VAE.
        facts: captions' facts of the same n photographs.
        tokenizer: of the captions.
        names: name words of the first identities.
        steps: length of the whole run, which the learning rate follows.
        batch: images per step, at most n.
        seed: of weights, batches, captions and noise; each step has draws of its own.
        learning_rate: its peak.
        checkpoint: file of the state, written every `checkpoint_every` steps; None keeps none.
        checkpoint_every: steps.

    Returns:
        The networks; their average is not yet in use.
    """
    model = _build(tokenizer, seed)
    parameters = model.parameters()
    optimiser = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    alpha_bar, weights = noise_schedule()
    facts_of = {name: np.asarray(getattr(facts, name)) for name in CAPTION_FACTS}
    first = 0 if checkpoint is None else _restore(checkpoint, model, optimiser)
    running = 0.0
    bar = progress(range(first, steps), description="denoiser", total=steps - first, unit="step")
    for step in bar:
        rng = numpy_generator(seed, "denoiser", step)
        noise_stream = torch_generator(seed, "denoiser noise", step)
        index = rng.choice(len(mean), batch, replace=False)
        words = tokenizer(
            caption_batch(rng, index, names=names, **facts_of),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        at = torch.from_numpy(index)
        draw = torch.randn((3, batch, *mean.shape[1:]), generator=noise_stream)
        clean = (mean[at] + std[at] * draw[0]) * scaling_factor
        t = torch.randint(0, TRAIN_TIMESTEPS, (batch,), generator=noise_stream)
        a = alpha_bar[t][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * draw[1]
        with torch.autocast("cpu", torch.bfloat16):
            context = model.text(words).last_hidden_state
            predicted = model.unet(noisy, t, context).sample
        loss = (weights[t] * (predicted.float() - draw[1]).square().mean((1, 2, 3))).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps)
        optimiser.step()
        model.follow(step)
        running = 0.98 * running + 0.02 * loss.item() if running else loss.item()
        if step % 50 == 0:
            bar.set_postfix(loss=round(running, 4))
        if checkpoint is not None and (step + 1) % checkpoint_every == 0:
            _keep(checkpoint, model, optimiser, step + 1)
    return model


def _build(tokenizer: CLIPTokenizer, seed: int) -> Denoiser:
    """Untrained networks, their average equal to their weights."""
    torch.manual_seed(seed_for(seed, "denoiser weights"))
    unet = denoiser()
    text = text_encoder(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
    )
    made = Denoiser(unet, text, [])
    made.average = [p.detach().clone() for p in made.parameters()]
    return made


def _keep(checkpoint: Path, model: Denoiser, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write the state after `step` steps."""
    state = {
        "step": step,
        "raw": [p.detach() for p in model.parameters()],
        "average": model.average,
        "optimiser": optimiser.state_dict(),
    }
    with atomic_path(checkpoint) as temporary:
        torch.save(state, temporary)


def _restore(checkpoint: Path, model: Denoiser, optimiser: torch.optim.Optimizer) -> int:
    """Read the state into the networks and the optimiser; the number of steps done, 0 for none."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, mmap=False)
    with torch.no_grad():
        for p, raw in zip(model.parameters(), state["raw"], strict=True):
            p.copy_(raw)
        for a, kept in zip(model.average, state["average"], strict=True):
            a.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
