"""Sampling: many images, of one or several identities, in one batch with guidance.

Initial noise and each step's noise come from a generator per image, seeded by (study seed, base
model, identity, index) and nothing else: the batch, the share and the method change no image's
noise. DDPM and the ancestral schedulers take noise at every step, the others only at the start. A
plain diffusers pipeline with the same seed, prompt and scheduler gives the same image.

Where a device's memory does not suffice, batches are halved, and so are the parts that are decoded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning, Predict, to_uint8
from pipeline_steps.diffusion.cpu import can_fold, folded
from pipeline_steps.diffusion.sampling.guidance import IdentityGuidance
from pipeline_steps.io.tensors import release, send
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger

DECODE_CHUNK = 8

# Name -> (diffusers class, settings beside the base model's noise schedule)
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmsolver++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


@dataclass(frozen=True)
class ImageRequest:
    """One image to sample.

    Attributes:
        identity: Name of the identity.
        index: Number of the image among the identity's.
        prompt: What it shall show.
        negative_prompt: What it shall not show.
        seed: Of its generator.
        adapter: Place of its weights among those on the network; None: the base model alone.
        away: The same image of another person, which negative guidance leads away from.
        of: Whom the network is told of, where that is not the identity, in such an image.
    """

    identity: str
    index: int
    prompt: str
    negative_prompt: str
    seed: int
    adapter: int | None = None
    away: ImageRequest | None = None
    of: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How images are denoised.

    Attributes:
        steps: Denoising steps.
        guidance: Classifier-free guidance; 1 means none.
        scheduler: A key of ``SCHEDULERS``.
        batch_size: Most images of a batch (guidance doubles what the network sees); changes no
            image beyond float error.
        negative: Share of the difference to each request's ``away`` that is added (NegFaceDiff);
            0: none.
    """

    steps: int
    guidance: float
    scheduler: str
    batch_size: int
    negative: float = 0.0


class OnNetwork(Protocol):
    """What lies on the network while images of some identities are sampled.

    Attributes:
        compiles: Whether the network can be compiled with it.
        condition: What the network is told in the place of prompts, of images and, for guidance's
            other side, of None; None: the prompts.
    """

    compiles: bool

    @property
    def condition(self) -> Callable[[Sequence[ImageRequest | None]], Conditioning] | None: ...

    def activate(self, rows: Sequence[int] | None, length: int = 1, guided: bool = False) -> None:
        """Choose who the groups of the following batches are, by place among the identities.

        A group holds so many images; guided: before them as many without the prompt.
        """


# A batch: groups of requests, one group per adapter, all groups equally long.
Batch = list[list[ImageRequest]]


def sample(
    base: BaseModel,
    requests: Sequence[ImageRequest],
    how: Sampling,
    *,
    bank: OnNetwork | None = None,
    predict: Predict | None = None,
    likeness: IdentityGuidance | None = None,
) -> Iterator[tuple[list[ImageRequest], Tensor]]:
    """Sample images batch by batch.

    Args:
        base: Base model, with ``bank`` on its network where it is given.
        requests: Images wanted.
        how: How they are denoised.
        bank: What lies on the network beside the base model; requests refer to it.
        predict: A compiled ``base.predict``; then all batches have the same shape, smaller ones
            are filled up with copies that are thrown away. None: the network as it is.
        likeness: Whom the images shall resemble; None: nobody is asked.

    Yields:
        The requests of a batch and their images, uint8 [n, 3, h, w] on the CPU.

    Raises:
        StepError: not even one image fits into the device's memory.
    """
    chunk = DECODE_CHUNK

    def decoded(latents: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [to_uint8(base.decode(part)).cpu() for part in latents.split(chunk)]
        return torch.cat(parts).contiguous()

    for batch, latents in sample_latents(
        base, requests, how, bank=bank, predict=predict, likeness=likeness
    ):
        while (images := _unless_out_of_memory(base, partial(decoded, latents))) is None:
            chunk = _halved(min(chunk, len(latents)), "decoding %d images at a time")
        yield batch, images


def sample_latents(
    base: BaseModel,
    requests: Sequence[ImageRequest],
    how: Sampling,
    *,
    bank: OnNetwork | None = None,
    predict: Predict | None = None,
    likeness: IdentityGuidance | None = None,
) -> Iterator[tuple[list[ImageRequest], Tensor]]:
    """Sample latents batch by batch; arguments as of :func:`sample`.

    Yields:
        The requests of a batch and their latents [n, c, h, w], in the denoising network's scale.
    """
    # Folded layers have no gradient, and inference mode none to give.
    through = likeness is not None and likeness.settings.gradient == "network"
    # They hold one person, too.
    fold = predict is None and can_fold(base.unet) and not through and not how.negative
    waiting, size = list(requests), how.batch_size

    def denoised(batch: Batch, batches: Sequence[Batch]) -> Tensor:
        filled = batch if predict is None else _filled(batch, batches)
        layers: AbstractContextManager[None] = nullcontext()
        with torch.inference_mode() if likeness is None else torch.no_grad():
            if fold:
                layers = folded(base.unet, None if bank is None else _row(batch[0][0]))
            with layers:
                latents = _denoise(base, filled, how, bank, predict or base.predict, likeness)
            latents = latents.unflatten(0, (len(filled), -1))[: len(batch), : len(batch[0])]
        return latents.flatten(0, 1)

    while waiting:
        batches = plan_batches(waiting, size, mixed=not fold)
        for batch in batches:
            latents = _unless_out_of_memory(base, partial(denoised, batch, batches))
            of_batch = [request for group in batch for request in group]
            if latents is None:
                size = _halved(len(of_batch), "sampling %d images at a time")
                break
            finished = set(of_batch)
            waiting = [request for request in waiting if request not in finished]
            yield of_batch, latents


def _unless_out_of_memory(base: BaseModel, work: Callable[[], Tensor]) -> Tensor | None:
    """What some work gives; None where the memory did not suffice, which is then free again."""
    with suppress(torch.OutOfMemoryError):
        return work()
    release(base.device)  # here nothing refers to what the work had made
    return None


def _halved(count: int, told: str) -> int:
    """Half as many images at a time. Raises StepError for one."""
    if count == 1:
        raise StepError(
            "one image does not fit into the device's memory: take a larger device, or "
            "sample.precision bf16"
        )
    get_logger("sample").warning(f"out of memory: {told}", count // 2)
    return count // 2


def plan_batches(
    requests: Sequence[ImageRequest], batch_size: int, *, mixed: bool = True
) -> list[Batch]:
    """Batches of groups: a group is of one adapter, groups of a batch are equally long.

    Several adapters share a batch where one alone does not fill it and ``mixed`` allows it.
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
        per_batch = max(1, batch_size // length) if mixed else 1
        batches += [same[i : i + per_batch] for i in range(0, len(same), per_batch)]
    return batches


def _filled(batch: Batch, batches: Sequence[Batch]) -> Batch:
    """A batch with copies of its last requests, of the shape that all batches can have."""
    groups, length = max(map(len, batches)), max(len(other[0]) for other in batches)
    longer = [group + [group[-1]] * (length - len(group)) for group in batch]
    return longer + [longer[-1]] * (groups - len(longer))


def _denoise(
    base: BaseModel,
    batch: Batch,
    how: Sampling,
    bank: OnNetwork | None,
    predict: Predict,
    likeness: IdentityGuidance | None,
) -> Tensor:
    """Latents [groups * length, c, h, w] of a batch's images, in the batch's order."""
    groups, length = len(batch), len(batch[0])
    guided = how.guidance > 1.0
    requests = [request for group in batch for request in group]
    identities = [request.identity for request in requests]
    condition = _show(base, batch, guided, bank)
    others = [[_away(request) for request in group] for group in batch] if how.negative else []
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    scheduler = make_scheduler(base.scheduler_config, how.scheduler)
    # The scheduler branches on the time: on the CPU, so that nobody waits for the device.
    scheduler.set_timesteps(how.steps)
    times = send(scheduler.timesteps, base.device)
    options = {"generator": generators} if takes_generator(scheduler) else {}
    noise = [torch.randn((1, *base.latent_shape), generator=g) for g in generators]
    latents = torch.cat(noise).to(base.device) * scheduler.init_noise_sigma

    def predicted(scaled: Tensor, time: Tensor) -> Tensor:
        """The network's output, led by the prompts and away from other people."""
        both = scaled
        if guided:  # each group: first without the prompt, then with it
            grouped = scaled.view(groups, 1, length, *scaled.shape[1:])
            both = grouped.expand(-1, 2, *grouped.shape[2:]).reshape(-1, *scaled.shape[1:])
        both = both.contiguous(memory_format=torch.channels_last)
        output = given = predict(both, time.expand(len(both)), condition)
        if guided:
            paired = output.contiguous().view(groups, 2, length, *output.shape[1:])
            without, given = paired.unbind(dim=1)
            output = (without + how.guidance * (given - without)).flatten(0, 1)
            given = given.flatten(0, 1)
        if others:
            alone = scaled.contiguous(memory_format=torch.channels_last)
            theirs = predict(alone, time.expand(len(alone)), _show(base, others, False, bank))
            output = output + how.negative * (given - theirs)
            _show(base, batch, guided, bank)
        return output

    for t, time in zip(scheduler.timesteps, times, strict=True):
        scaled = scheduler.scale_model_input(latents, t)
        toward = partial(predicted, time=time)
        if likeness is not None and likeness.active(base, float(t)):
            output = likeness.adjusted(base, identities, float(t), scaled, toward)
        else:
            output = toward(scaled)
        latents = scheduler.step(output, t, latents, **options, return_dict=False)[0]
    return latents


def _away(request: ImageRequest) -> ImageRequest:
    if request.away is None:
        raise ValueError(f"{request.identity} {request.index}: away from whom?")
    return request.away


def _show(base: BaseModel, batch: Batch, guided: bool, bank: OnNetwork | None) -> Conditioning:
    """Put a batch's people on the network; what it is told, in the order of its batch."""
    if bank is not None:
        bank.activate([_row(group[0]) for group in batch], len(batch[0]), guided)
    if bank is not None and bank.condition is not None:
        asked: list[ImageRequest | None] = []
        for group in batch:
            asked += [*([None] * len(group) if guided else []), *group]
        return bank.condition(asked)
    prompts: list[str | None] = []
    for group in batch:
        if guided:
            prompts += [request.negative_prompt or None for request in group]
        prompts += [request.prompt for request in group]
    return base.encode_prompts(prompts)


def _row(request: ImageRequest) -> int:
    if request.adapter is None:
        raise ValueError(f"{request.identity} {request.index}: which adapter?")
    return request.adapter


def make_scheduler(config: Mapping[str, Any], name: str) -> Any:
    """A diffusers scheduler on a base model's noise schedule.

    Args:
        config: The noise schedule, as diffusers stores it.
        name: A key of ``SCHEDULERS``.

    Raises:
        ValueError: no scheduler has that name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: one of {', '.join(SCHEDULERS)} expected")
    import diffusers

    kind, extra = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(dict(config), **extra)


def takes_generator(scheduler: Any) -> bool:
    """Whether a scheduler's step can draw noise."""
    return "generator" in inspect.signature(scheduler.step).parameters
