"""Settings of the prior step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline_steps.settings.base import Section

Scheduler = Literal[
    "ddpm",
    "ddim",
    "dpmsolver++",
    "dpmsolver++_karras",
    "dpmsolver++_sde",
    "unipc",
    "euler",
    "euler_ancestral",
    "heun",
    "pndm",
]
Precision = Literal["fp32", "bf16", "fp16"]


class PriorSettings(Section):
    """How the prior preservation images are made by the untouched base model."""

    images: int = Field(default=200, ge=1, description="Number of images with a face.")
    class_prompt: str = Field(
        default="photo of a person", description="Prompt of the class that is preserved."
    )
    negative_prompt: str = Field(
        default="", description="What the images shall not show; empty: nothing is said."
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(default=5.0, ge=1, description="Classifier-free guidance; 1 is none.")
    scheduler: Scheduler = Field(default="ddpm", description="Sampler of the denoising process.")
    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of sampling; bf16 and fp16 are for GPUs.",
    )
    attempts: int = Field(
        default=5, ge=1, description="Most drawings of one image until it shows a face."
    )
    min_face_size: int = Field(default=20, ge=10, description="Smallest face looked for, pixels.")
