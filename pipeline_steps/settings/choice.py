"""Settings of the choice among several steps of one fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline_steps.settings.base import Section


class ChoiceSettings(Section):
    """Which step's weights are kept: images are sampled at a few, and the best step is taken.

    Best is the highest similarity to photographs that were not trained on, among the steps whose
    images are diverse enough; see docs/objectives.md.
    """

    steps: tuple[int, ...] = Field(
        min_length=1, description="Optimiser steps at which images are sampled, ascending."
    )
    held_out: int = Field(
        default=4, ge=1, description="Photographs of each identity that are not trained on."
    )
    images: int = Field(default=8, ge=2, description="Images sampled at each step per identity.")
    min_diversity: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Least diversity of a step's images, as a share of the untuned model's.",
    )
    prompts: tuple[str, ...] = Field(
        default=(
            "photo of {token} person, close-up portrait",
            "photo of {token} person, close-up portrait, happy expression, busy beach environment",
            "photo of {token} person, close-up portrait, sad expression, busy office environment",
            "photo of {token} person, close-up portrait, angry expression, busy forest environment",
        ),
        min_length=1,
        description="Prompts of these images, used in turn; each holds {token}.",
    )
    negative_prompt: str = Field(default="", description="Negative prompt of these images.")
    sampling_steps: int = Field(default=15, ge=1, le=1000, description="Denoising steps.")
    guidance: float = Field(default=5.0, ge=1, description="Classifier-free guidance; 1 is none.")
    scheduler: Literal["ddpm", "ddim", "dpmsolver++"] = Field(
        default="dpmsolver++", description="Sampler of the denoising process."
    )

    @field_validator("steps")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] < 1 or list(value) != sorted(set(value)):
            raise ValueError("steps are positive and ascending")
        return value

    @field_validator("prompts")
    @classmethod
    def _with_token(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("{token}" not in prompt for prompt in value):
            raise ValueError("every prompt must hold {token}")
        return value
