"""Train the embedded denoiser and its text encoder together: noise prediction on cached latents (Ho et al. 2020).

Stable Diffusion's noise schedule (scaled-linear betas 0.00085 ... 0.012, 1000 steps); loss weighted by min(SNR, 5) / SNR
(Hang et al. 2023), which spends the effort where shape and identity are decided; averaged weights are what is kept.
Learning rate: warm-up, plateau, then a cosine fall over the last quarter, so that a run can be lengthened from its
checkpoint without repeating the plateau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline_steps.demo_world.architectures import denoiser, text_encoder
from pipeline_steps.demo_world.captions import caption_batch
from pipeline_steps.demo_world.training_images import TrainingImages
from pipeline_steps.files.atomic import atomic_path
from pipeline_steps.files.logs import progress
from pipeline_steps.seeds import numpy_generator, seed_for, torch_generator

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "prediction_type": "epsilon", "steps_offset": 1,
}  # fmt: skip
SNR_CAP = 5.0
WARM_UP_STEPS = 200
FALL = 0.25
AVERAGING = 0.9993


@dataclass
class Denoiser:
    """Networks in training and their running averages."""

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


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, plateau, cosine fall over the last quarter."""
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    into_fall = (step / steps - (1 - FALL)) / FALL
    return (
        rise
        if into_fall <= 0
        else rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(into_fall, 1.0))))
    )


def _build(tokenizer: CLIPTokenizer, seed: int) -> Denoiser:
    torch.manual_seed(seed_for(seed, "denoiser weights"))
    unet = denoiser()
    text = text_encoder(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
    )
    made = Denoiser(unet, text, [])
    made.average = [p.detach().clone() for p in made.parameters()]
    return made


def train_denoiser(
    mean: torch.Tensor,
    std: torch.Tensor,
    scaling_factor: float,
    facts: TrainingImages,
    tokenizer: CLIPTokenizer,
    names: list[str],
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 6e-4,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
) -> Denoiser:
    """Train for `steps` steps; go on from `checkpoint` when it exists. Returns the networks, the average not yet in use.

    Args:
        mean, std: VAE posterior moments float32 [n, 4, 16, 16], unscaled.
        facts: captions' facts of the same n photographs.
        names: name words of the first identities.
    """
    model = _build(tokenizer, seed)
    parameters = model.parameters()
    optimiser = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2  # type: ignore[operator]
    alpha_bar = torch.cumprod(1 - betas, 0)
    snr = alpha_bar / (1 - alpha_bar)
    weights = snr.clamp(max=SNR_CAP) / snr
    weights = weights / weights.mean()
    facts_of = {
        k: np.asarray(getattr(facts, k)) for k in ("identity", "male", "expression", "place", "yaw")
    }
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, mmap=False)
        with torch.no_grad():
            for p, raw, kept, a in zip(
                parameters, state["raw"], state["average"], model.average, strict=True
            ):
                p.copy_(raw)
                a.copy_(kept)
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    running = 0.0
    bar = progress(range(first, steps), description="denoiser", total=steps - first, unit="step")
    for step in bar:
        rng = numpy_generator(seed, "denoiser", step)
        noise_stream = torch_generator(seed, "denoiser noise", step)
        index = rng.choice(len(mean), batch, replace=False)
        words = tokenizer(
            caption_batch(rng, index, names=names, **facts_of),
            padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt",
        ).input_ids  # fmt: skip
        at = torch.from_numpy(index)
        draw = torch.randn((3, batch, *mean.shape[1:]), generator=noise_stream)
        clean = (mean[at] + std[at] * draw[0]) * scaling_factor
        t = torch.randint(0, 1000, (batch,), generator=noise_stream)
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
        decay = min(AVERAGING, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(model.average, [p.detach() for p in parameters], 1 - decay)
        running = 0.98 * running + 0.02 * loss.item() if running else loss.item()
        if step % 50 == 0 and hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=round(running, 4))
        if checkpoint is not None and (step + 1) % checkpoint_every == 0:
            with atomic_path(checkpoint) as temporary:
                torch.save(
                    {"step": step + 1, "raw": [p.detach() for p in parameters], "average": model.average,
                     "optimiser": optimiser.state_dict()}, temporary,
                )  # fmt: skip
    return model
