"""The random numbers of fine-tuning, keyed by identity and step.

There is no running stream: step s of an identity draws the same numbers whatever ran before it or
beside it, so neither a cohort's composition nor an interruption changes a result. The method is no
part of the key either: the three methods see the same images, noise and timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline_steps.seeds import torch_generator


@dataclass(frozen=True)
class StepNoise:
    """What one step of one identity needs, or of many, stacked along a new first axis.

    Of the 2b samples the first b are instance images and the others prior images.

    Attributes:
        instance: Instance images, int64 [b].
        prior: Prior images, int64 [b].
        posterior: Noise of the autoencoder's posterior, float32 [2b, c, h, w].
        noise: Noise of the diffusion, float32 [2b, c, h, w].
        timesteps: int64 [2b], uniform in [0, T).
    """

    instance: Tensor
    prior: Tensor
    posterior: Tensor
    noise: Tensor
    timesteps: Tensor


def step_noise(
    seed: int,
    base_model: str,
    identity: str,
    step: int,
    *,
    n_instance: int,
    n_prior: int,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    train_timesteps: int,
) -> StepNoise:
    """Draw one step of one identity.

    Images go in epochs: an epoch is a shuffled pass over max(n_instance, n_prior) pairs, pair i
    being instance image i mod n_instance and prior image i mod n_prior.
    """
    length = max(n_instance, n_prior)
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    pairs = torch.stack(
        [
            _epoch(seed, base_model, identity, int(place) // length, length)[int(place) % length]
            for place in places
        ]
    )
    generator = torch_generator(seed, "finetune", base_model, identity, step)
    shape = (2 * batch_size, *latent_shape)
    return StepNoise(
        instance=pairs % n_instance,
        prior=pairs % n_prior,
        posterior=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.randint(train_timesteps, (2 * batch_size,), generator=generator),
    )


def stack(steps: list[StepNoise]) -> StepNoise:
    """That of K identities with a first axis of length K."""
    names = [field.name for field in fields(StepNoise)]
    return StepNoise(**{n: torch.stack([getattr(step, n) for step in steps]) for n in names})


def _epoch(seed: int, base_model: str, identity: str, epoch: int, length: int) -> Tensor:
    generator = torch_generator(seed, "finetune", base_model, identity, "epoch", epoch)
    return torch.randperm(length, generator=generator)
