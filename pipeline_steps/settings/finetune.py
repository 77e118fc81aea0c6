"""Settings of the finetune step."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.settings.base import Section
from pipeline_steps.settings.choice import ChoiceSettings

OPTIONAL = frozenset().union(*(method.uses for method in METHODS.values()))


class FinetuneSettings(Section):
    """How a base model is fine-tuned to an identity; defaults are the paper's for SD-2.1."""

    rank: int = Field(default=4, ge=1, le=512, description="Rank of the LoRA matrices.")
    alpha: float = Field(default=4.0, gt=0, description="LoRA's alpha: the update is alpha / rank.")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Linear layers of the denoising network that get an adapter, by name ending.",
    )
    init: Literal["gaussian", "kaiming"] = Field(
        default="gaussian",
        description="Initial A: gaussian of standard deviation 1/rank, or kaiming uniform; B is 0.",
    )
    steps: int = Field(default=6400, ge=1, description="Optimiser steps (32 epochs of 200).")
    batch_size: int = Field(
        default=1, ge=1, description="Instance images per step; as many prior images beside them."
    )
    optimiser: Literal["adamw", "adamw8bit"] = Field(
        default="adamw",
        description="AdamW's moments in fp32, or in 8 bits with a scale per 256 values (as the "
        "paper for SDXL): a quarter of their memory.",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="AdamW's peak learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate over the steps; cosine ends at zero."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moment decays.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's decoupled weight decay.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    clip_norm: float = Field(
        default=1.0, gt=0, description="Largest norm of one identity's whole gradient."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Type of the frozen weights and of the arithmetic; adapters stay in fp32. "
        "bf16 is for GPUs and needs no loss scaling.",
    )
    prior_weight: float = Field(
        default=1.0, ge=0, description="Weight of the prior preservation loss (Eq. 5)."
    )
    identity_weight: float | None = Field(
        default=1.0, ge=0, description="Weight of the identity term (Eq. 7, 8)."
    )
    timestep_weighting: Literal["quadratic", "none"] | None = Field(
        default="quadratic",
        description="Weight of the identity term by timestep: quadratic is (1 - t/T)^2.",
    )
    margin: float | None = Field(
        default=1.0, ge=0, le=2, description="Margin of the triplet identity loss (Eq. 8)."
    )
    min_face_size: int | None = Field(
        default=20, ge=10, description="Smallest face looked for in estimated images, pixels."
    )
    token: str = Field(
        default="sks", min_length=1, description="Rare word that stands for the identity."
    )
    instance_prompt: str = Field(
        default="photo of {token} person",
        description="Prompt of the identity's images; may hold {gender}, a word from genders.",
    )
    genders: dict[str, str] = Field(
        default={"M": "male", "F": "female"},
        description="Gender column of the identity table to word; other values give no word.",
    )
    choice: ChoiceSettings | None = Field(
        default=None,
        description="Which step's weights are kept, chosen by images sampled at a few steps, e.g. "
        "{steps: [1600, 3200, 4800, 6400]}; null: the last step's, as in the paper.",
    )
    overrides: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="Base model to the settings that differ for it, e.g. sdxl: {steps: 1000}.",
    )

    @field_validator("instance_prompt")
    @classmethod
    def _has_token(cls, value: str) -> str:
        if "{token}" not in value:
            raise ValueError("the instance prompt must hold {token}")
        return value

    def resolved(self, base_model: str, method: str) -> FinetuneSettings:
        """The settings of one base model and method, and nothing they do not use.

        What a method does not use becomes None, so that changing it reruns only the others.

        Raises:
            ValueError: the method is unknown, or an override is unfit.
        """
        if method not in METHODS:
            raise ValueError(f"method {method!r}: one of {', '.join(METHODS)} expected")
        values: dict[str, Any] = self.model_dump() | self.overrides.get(base_model, {})
        for name in OPTIONAL - METHODS[method].uses:
            values[name] = None
        values["overrides"] = {}
        resolved = type(self).model_validate(values)
        if resolved.choice is not None and resolved.choice.steps[-1] > resolved.steps:
            raise ValueError(
                f"finetune.choice.steps: {resolved.choice.steps[-1]} is beyond the last step, "
                f"{resolved.steps}"
            )
        return resolved

    def needs_faces(self, method: str) -> bool:
        """Whether a method's training looks at faces: in its objective, or to choose a step."""
        return METHODS[method].identity_term is not None or self.choice is not None

    def for_method(self, method: str) -> FinetuneSettings:
        """As :meth:`resolved`, without any base model's overrides."""
        return self.resolved("", method)

    def instance_prompt_for(self, gender: str | None) -> str:
        """The instance prompt of an identity whose gender column says ``gender``."""
        word = self.genders.get(gender or "", "")
        return " ".join(self.instance_prompt.format(token=self.token, gender=word).split())
