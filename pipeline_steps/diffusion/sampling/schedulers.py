"""Samplers of the denoising process by name: diffusers' schedulers with their settings.

DDPM and the ancestral ones draw noise at every step, the others only at the start; either way from
each image's own generator, so that an image does not depend on its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

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
