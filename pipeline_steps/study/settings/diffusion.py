"""Settings of generation: prior images, fine-tuning, and weights that are trained once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.study.settings.base import Section
from pipeline_steps.study.settings.sampling import (
    MOST_STEPS,
    InventSettings,
    Precision,
    SampleSettings,
    Scheduler,
    TogetherSettings,
)


class PriorSettings(Section):
    """How the prior preservation images are made by the untouched base model."""

    images: int = Field(default=200, ge=1, description="Number of images with a face.")
    class_prompt: str = Field(
        default="photo of a person", description="Prompt of the class that is preserved."
    )
    negative_prompt: str = Field(
        default="", description="What the images shall not show; empty: nothing is said."
    )
    steps: int = Field(default=30, ge=1, le=MOST_STEPS, description="Denoising steps.")
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
        trained = [name for name, known in METHODS.items() if known.trains]
        if method not in trained:
            raise ValueError(f"method {method!r}: one of {', '.join(trained)} expected")
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
        return METHODS[method].needs_faces(self)

    def for_method(self, method: str) -> FinetuneSettings:
        """As :meth:`resolved`, without any base model's overrides."""
        return self.resolved("", method)

    def instance_prompt_for(self, gender: str | None) -> str:
        """The instance prompt of an identity whose gender column says ``gender``."""
        word = self.genders.get(gender or "", "")
        return " ".join(self.instance_prompt.format(token=self.token, gender=word).split())


class EmbeddingTrainingSettings(Section):
    """How a denoiser learns to be told a face embedding and attributes; the paper leaves some of it
    open.
    """

    start: Literal["base_model", "nothing"] = Field(
        default="nothing",
        description="Weights at the start: the base model's, or random ones, as in the paper.",
    )
    trains: Literal["all", "attention"] = Field(
        default="all", description="Train the whole denoiser, or its attention blocks alone."
    )
    hidden: int = Field(default=256, ge=1, description="Hidden width of the MLP (paper: 256).")
    tokens: int = Field(
        default=4, ge=1, description="Tokens that an embedding becomes (not in the paper)."
    )
    embedding_of: Literal["image", "person"] = Field(
        default="image",
        description="Whose embedding is told: the image's own, as in the paper, or that of any "
        "image of the same person, which says nothing of the image's pose.",
    )
    nearest: float = Field(
        default=1.0,
        ge=-1,
        le=1,
        description="Embeddings are told with noise, at a cosine between this and 1 to their own; "
        "1: without, as in the paper.",
    )
    drop: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of embeddings that are left out, and of each attribute, for guidance "
        "(not in the paper).",
    )
    reconstruction: float = Field(
        default=1.0, ge=0, description="Weight of the one-step reconstruction (not in the paper)."
    )
    likeness: float = Field(
        default=1.0, ge=0, description="Weight of the inner product term, beside its own by time."
    )
    looked_at: int = Field(
        default=16,
        ge=1,
        description="Images of a batch whose estimates are decoded for that term; fewer is faster.",
    )
    min_face_size: int = Field(default=20, ge=10, description="Smallest face looked for, pixels.")

    @model_validator(mode="after")
    def _what_is_frozen_is_trained(self) -> EmbeddingTrainingSettings:
        if self.start == "nothing" and self.trains != "all":
            raise ValueError(
                f"trains: {self.trains} leaves the rest of a network untrained that starts from "
                "nothing; start: base_model, or trains: all"
            )
        return self


class GeneratorSettings(Section):
    """How weights that show anybody are trained, once for a base model."""

    weights: dict[str, str] = Field(
        default_factory=dict,
        description="Base model to weights trained before, by their name in config/models.yaml, "
        "e.g. {demo: demo_facefusion}; for any other they are trained here.",
    )
    images: str = Field(
        default="data/in_the_wild_captioned",
        description="Images with captions to train on: a folder, a zip, or a folder of tar shards; "
        "a caption is the text file of the image's name. Images of one folder show one person; "
        "those that lie in none are each somebody else's, and their own reference. The paper has "
        "80 000 of LAION-face.",
    )
    caption: str = Field(
        default="photo of a person", description="Caption of an image that has none."
    )
    steps: int = Field(default=80_000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=2, ge=1, description="Images per step (paper: 1 on 2 GPUs).")
    references: int = Field(
        default=4, ge=1, le=16, description="Most references of an image; each step draws how many."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="AdamW's peak learning rate.")
    warm_up: int = Field(default=500, ge=0, description="Steps in which it rises.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate over the steps; cosine ends at zero."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="AdamW's moment decays.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's decoupled weight decay.")
    clip_norm: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    drop_text: float = Field(
        default=0.1, ge=0, lt=1, description="Share of captions that are left out, for guidance."
    )
    snr_cap: float | None = Field(
        default=5.0,
        gt=0,
        description="Weights each timestep by min(SNR, cap) / SNR, of base models that predict v "
        "by min(SNR, cap) / (SNR + 1) (Hang et al., ICCV 2023); null: all alike, as in the paper.",
    )
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of the running average that is kept in the place of the last weights, "
        "e.g. 0.9999; null: the last weights.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Type of the frozen weights; what is trained stays in fp32."
    )
    embeddings: EmbeddingTrainingSettings | None = Field(
        default=EmbeddingTrainingSettings(),
        description="Of methods that know a person by a face embedding.",
    )
    overrides: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="Method to the settings that differ for it, e.g. id3: {steps: 500000, "
        "batch_size: 16, average: 0.9999}.",
    )

    def resolved(self, method: str) -> GeneratorSettings:
        """The settings of one method.

        Raises:
            ValueError: an override is unfit.
        """
        values = self.model_dump() | self.overrides.get(method, {}) | {"overrides": {}}
        if not METHODS[method].family.embeds:
            values["embeddings"] = None
        return type(self).model_validate(values)


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
    sampling_steps: int = Field(default=15, ge=1, le=MOST_STEPS, description="Denoising steps.")
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


class GenerationSections(Section):
    """Generation: prior images, fine-tuning, sampling."""

    prior: PriorSettings = Field(default=PriorSettings())
    train_generator: GeneratorSettings = Field(default=GeneratorSettings())
    finetune: FinetuneSettings = Field(default=FinetuneSettings())
    invent: InventSettings = Field(default=InventSettings())
    sample: SampleSettings = Field(default=SampleSettings())
    sample_together: TogetherSettings = Field(default=TogetherSettings())
