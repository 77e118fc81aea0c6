"""Sampling: many images, of one or several identities, in one batch with guidance.

Initial noise and each step's noise come from a generator per image, seeded by (study seed, base
model, identity, index) and nothing else: the batch, the cohort and the method change no image's
noise. A plain diffusers pipeline with the same seed, prompt and scheduler gives the same image.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.adapters import AdapterBank
from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.diffusion.face_region import to_uint8

# Name -> (diffusers class, settings beside the base model's noise schedule)
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}
DECODE_CHUNK = 8


@dataclass(frozen=True)
class ImageRequest:
    """One image to sample.

    Attributes:
        identity: Name of the identity.
        index: Number of the image among the identity's.
        prompt: What it shall show.
        negative_prompt: What it shall not show.
        seed: Of its generator.
        adapter: Row of the adapter bank; None: the untouched base model.
    """

    identity: str
    index: int
    prompt: str
    negative_prompt: str
    seed: int
    adapter: int | None = None


def make_scheduler(base: BaseModel, name: str) -> Any:
    """A diffusers scheduler on the base model's noise schedule.

    Raises:
        ValueError: no scheduler has that name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: one of {', '.join(SCHEDULERS)} expected")
    import diffusers

    kind, extra = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(base.scheduler_config, **extra)


def sample(
    base: BaseModel,
    requests: Sequence[ImageRequest],
    *,
    steps: int,
    guidance: float,
    scheduler: str,
    batch_size: int,
    bank: AdapterBank | None = None,
) -> Iterator[tuple[list[ImageRequest], Tensor]]:
    """Sample images batch by batch.

    Args:
        base: Base model, with ``bank`` on its network where one is given.
        requests: Images wanted.
        steps: Denoising steps.
        guidance: Classifier-free guidance; 1 means none.
        scheduler: A key of ``SCHEDULERS``.
        batch_size: Most images of a batch (guidance doubles what the network sees).
        bank: Adapters that the requests refer to.

    Yields:
        The requests of a batch and their images, uint8 [n, 3, h, w] on the CPU.
    """
    for batch in plan_batches(requests, batch_size):
        with torch.inference_mode():
            images = _sample_batch(base, batch, steps, guidance, scheduler, bank)
        yield [request for group in batch for request in group], images


def plan_batches(
    requests: Sequence[ImageRequest], batch_size: int
) -> list[list[list[ImageRequest]]]:
    """Batches of groups: a group is of one adapter, groups of a batch are equally long.

    Several adapters share a batch where one alone does not fill it.
    """
    by_adapter: dict[int | None, list[ImageRequest]] = {}
    for request in requests:
        by_adapter.setdefault(request.adapter, []).append(request)
    groups: dict[int, list[list[ImageRequest]]] = {}
    for wanted in by_adapter.values():
        pieces = -(-len(wanted) // batch_size)
        for i in range(pieces):  # pieces as equal as can be
            piece = wanted[len(wanted) * i // pieces : len(wanted) * (i + 1) // pieces]
            groups.setdefault(len(piece), []).append(piece)
    batches = []
    for length, same in sorted(groups.items(), reverse=True):
        per_batch = max(1, batch_size // length)
        batches += [same[i : i + per_batch] for i in range(0, len(same), per_batch)]
    return batches


def _sample_batch(
    base: BaseModel,
    batch: list[list[ImageRequest]],
    steps: int,
    guidance: float,
    scheduler_name: str,
    bank: AdapterBank | None,
) -> Tensor:
    groups, length = len(batch), len(batch[0])
    requests = [request for group in batch for request in group]
    if bank is not None:
        bank.activate([_row(group[0]) for group in batch])
    guided = guidance > 1.0
    condition = _conditioning(base, batch, guided)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    scheduler = make_scheduler(base, scheduler_name)
    scheduler.set_timesteps(steps, device=base.device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if takes_generator else {}
    noise = [torch.randn((1, *base.latent_shape), generator=g) for g in generators]
    latents = torch.cat(noise).to(base.device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t)
        if guided:  # each group: first without the prompt, then with it
            grouped = scaled.view(groups, 1, length, *scaled.shape[1:])
            scaled = grouped.expand(-1, 2, *grouped.shape[2:]).reshape(-1, *scaled.shape[1:])
        output = base.predict(scaled, t.expand(len(scaled)), condition)
        if guided:
            without, given = output.view(groups, 2, length, *output.shape[1:]).unbind(dim=1)
            output = (without + guidance * (given - without)).flatten(0, 1)
        latents = scheduler.step(output, t, latents, **options, return_dict=False)[0]
    parts = [to_uint8(base.decode(part)).cpu() for part in latents.split(DECODE_CHUNK)]
    return torch.cat(parts)


def _conditioning(base: BaseModel, batch: list[list[ImageRequest]], guided: bool) -> Conditioning:
    """Prompts in the order of the network's batch."""
    prompts: list[str] = []
    for group in batch:
        if guided:
            prompts += [request.negative_prompt for request in group]
        prompts += [request.prompt for request in group]
    return base.encode_prompts(prompts)


def _row(request: ImageRequest) -> int:
    if request.adapter is None:
        raise ValueError(f"{request.identity} {request.index}: which adapter?")
    return request.adapter
