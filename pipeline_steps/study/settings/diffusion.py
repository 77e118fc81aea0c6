"""Settings of the prior step."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Section, validated
from pipeline_steps.study.settings.photographs import AlignSettings

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
# With more, some schedulers of 1000 trained times ask for one that was never trained.
MOST_STEPS = 998


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


class GeneratorSettings(Section):
    """How weights that show anybody from photographs are trained, once for a base model."""

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
        description="Weights each timestep by min(SNR, cap) / SNR (Hang et al., ICCV 2023); null: "
        "all alike, as in the paper.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Type of the frozen weights; what is trained stays in fp32."
    )


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


RESERVED = ("token", "gender")  # filled per identity, not drawn


class SlotValue(Section):
    """One value of a slot."""

    text: str = Field(description="What stands in the slot; empty: nothing, nor its phrase.")
    times: int = Field(default=1, ge=1, description="How often the value lies in a deck.")
    probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of an independent draw; given for all values of a slot, or for none.",
    )


class Slot(Section):
    """A place of the template that differs from image to image."""

    draw: Literal["deck", "independent"] = Field(
        description="deck: combinations with the other deck slots, shuffled per identity and dealt "
        "without replacement; independent: anew for every image, uniform or by probability."
    )
    phrase: str = Field(default="{}", description="Text around a value, e.g. ', {} background'.")
    values: tuple[SlotValue | str, ...] = Field(min_length=1, description="What is drawn.")

    @model_validator(mode="after")
    def _draws_fit(self) -> Slot:
        if "{}" not in self.phrase:
            raise ValueError(f"the phrase {self.phrase!r} must hold {{}}, where the value stands")
        given = [value.probability for value in self.entries() if value.probability is not None]
        if given and self.draw == "deck":
            raise ValueError("a deck knows no probability: write times, or draw: independent")
        if given and len(given) != len(self.values):
            raise ValueError("give every value of the slot a probability, or none of them")
        if given and abs(sum(given) - 1) > 1e-9:
            raise ValueError(f"the probabilities add up to {sum(given):g}, not to 1")
        return self

    def entries(self) -> list[SlotValue]:
        """The values, plain texts as values that lie in a deck once."""
        return [SlotValue(text=value) if isinstance(value, str) else value for value in self.values]

    def filled(self, text: str) -> str:
        """The phrase of a value; empty for the empty value."""
        return self.phrase.replace("{}", text) if text else ""


class PromptSet(Section):
    """Prompts of a variant: a template, what its slots hold, and a negative prompt."""

    name: str = Field(description="Name of the prompt set.")
    source: str = Field(default="", description="Where the prompts were published.")
    template: str = Field(description="Text with {token}, {gender} and the slots' names in braces.")
    slots: dict[str, Slot] = Field(default_factory=dict, description="Slot name to its values.")
    genders: dict[str, str] = Field(
        default={"M": "male", "F": "female"},
        description="Gender column of the identity table to word; other values give no word.",
    )
    negative_prompt: str = Field(default="", description="What the images shall not show.")

    @model_validator(mode="after")
    def _slots_fit(self) -> PromptSet:
        parsed = [name for _, name, _, _ in string.Formatter().parse(self.template)]
        if "" in parsed:
            raise ValueError("braces in the template must name a slot, {token} or {gender}")
        fields = {name for name in parsed if name}
        missing = sorted(fields - set(self.slots) - set(RESERVED))
        unused = sorted(set(self.slots) - fields)
        if missing or unused:
            parts = [f"{{{name}}} in the template is no slot" for name in missing]
            parts += [f"slot {name!r} is not in the template" for name in unused]
            raise ValueError(", ".join(parts))
        if "token" not in fields:
            raise ValueError("the template must hold {token}")
        if set(self.slots) & set(RESERVED):
            raise ValueError(f"{' and '.join(RESERVED)} cannot be slots")
        return self


class GateSettings(Section):
    """Which images are usable: a face must be found, and what is asked for here must hold."""

    attempts: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Most drawings of one image; then the identity has fewer images.",
    )
    min_similarity: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Least cosine similarity of the face to the mean of the identity's "
        "photographs, by the study's recogniser; not asked of untuned. null: any.",
    )
    min_quality: float | None = Field(
        default=None,
        description="Least face quality by score.quality.face_quality_extractor; null: any.",
    )
    align: AlignSettings = Field(
        default=AlignSettings(),
        description="Filled in from the section align when a study is frozen.",
    )
    code: str = Field(
        default="", description="Hash of the code that measures, filled in when a study is frozen."
    )


class IdentityGuidanceSettings(Section):
    """A pull of every image towards its identity's face, by the study's recogniser."""

    weight: float = Field(
        default=15.0,
        gt=0,
        description="Factor of the likeness's gradient by the latents, before the schedule's.",
    )
    schedule: Literal["id3", "quadratic", "constant"] = Field(
        default="id3",
        description="Factor by timestep: id3 falls from 0.25 to 0.13 with the noise, quadratic "
        "from 1 to 0, as in fine-tuning.",
    )
    gradient: Literal["estimate", "network"] = Field(
        default="estimate",
        description="Through the estimate of the clean image alone, or through the network too, "
        "which takes about three times as long.",
    )
    interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="Timesteps that are guided, as shares of all: 0 is without noise.",
    )
    min_face_size: int = Field(
        default=20, ge=8, description="Smallest face that is looked for, pixels."
    )

    @model_validator(mode="after")
    def _ordered(self) -> IdentityGuidanceSettings:
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError("interval must be two shares, 0 <= first < second <= 1")
        return self


class ReferenceSettings(Section):
    """Which photographs show a method that needs no training for a person whom to paint."""

    count: int = Field(
        default=4, ge=1, le=16, description="References of a person; photographs in turn if fewer."
    )
    frontal: bool = Field(
        default=True,
        description="Take the most frontal photographs; false: the first ones by file name.",
    )
    named: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Identity to the file names of the prepared photographs to take instead, e.g. "
        "{ID_1: [0003.png]}.",
    )
    guide_away: bool = Field(
        default=True,
        description="Guidance's other side sees no reference, so that likeness is guided, too; "
        "false: it sees them.",
    )


class SampleSettings(Section):
    """How images are sampled; defaults are the paper's."""

    images_per_identity: int = Field(default=21, ge=1, description="Images per identity.")
    steps: int = Field(default=30, ge=1, le=MOST_STEPS, description="Denoising steps.")
    guidance: float = Field(default=5.0, ge=1, description="Classifier-free guidance; 1 is none.")
    scheduler: Scheduler = Field(default="ddpm", description="Sampler of the denoising process.")
    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of sampling. The paper has fp16; it and bf16 are for GPUs.",
    )
    token: str = Field(
        default="sks",
        min_length=1,
        description="Rare word of the fine-tuning's instance prompt; dropped for untuned.",
    )
    gate: GateSettings | None = Field(
        default=None,
        description="Draw unusable images again: {attempts: 5} asks for a face, min_similarity and "
        "min_quality for more; null: every image counts, as in the paper.",
    )
    identity_guidance: IdentityGuidanceSettings | None = Field(
        default=None,
        description="Lean every denoising step towards the identity's face: {} for the defaults; "
        "not for untuned, which shows nobody. null: none, as in ID-Booth.",
    )
    references: ReferenceSettings | None = Field(
        default=ReferenceSettings(),
        description="Photographs that methods look at which train nothing for a person.",
    )
    prompt_set: PromptSet | None = Field(
        default=None,
        description="Filled in from config/prompts/<name>.yaml when a study is frozen.",
    )

    def with_prompts(self, prompt_set: PromptSet) -> SampleSettings:
        """The settings of one prompt set."""
        return self.model_copy(update={"prompt_set": prompt_set})

    def judged_by(self, align: AlignSettings, code: str) -> SampleSettings:
        """The settings whose gate, if there is one, measures by this code, and searches faces as
        the align step does.
        """
        if self.gate is None:
            return self
        gate = self.gate.model_copy(update={"align": align, "code": code})
        return self.model_copy(update={"gate": gate})


def read_prompt_set(path: str | os.PathLike[str]) -> PromptSet:
    """Read a prompt set; its name is its file's.

    Raises:
        StepError: the file is missing, is no YAML, is no prompt set, or has another name.
    """
    raw = read_mapping(path, "prompt set")
    found = validated(PromptSet, {"name": Path(path).stem} | raw, f"prompt set {path}")
    if found.name != Path(path).stem:
        raise StepError(f"prompt set {path}: its name is {found.name!r}; name it as its file")
    return found


class GenerationSections(Section):
    """Generation: prior images, fine-tuning, sampling."""

    prior: PriorSettings = Field(default=PriorSettings())
    train_generator: GeneratorSettings = Field(default=GeneratorSettings())
    finetune: FinetuneSettings = Field(default=FinetuneSettings())
    sample: SampleSettings = Field(default=SampleSettings())
