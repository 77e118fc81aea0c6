"""How images are sampled: prompts, gate, guidance, references."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

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
Attribute = Literal["age", "pitch", "yaw", "roll"]
# With more, some schedulers of 1000 trained times ask for one that was never trained.
MOST_STEPS = 998
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
    order: Literal["frontal", "quality", "name"] = Field(
        default="frontal",
        description="Take the most frontal photographs, those of the best face quality by "
        "score.quality.face_quality_extractor, or the first ones by file name.",
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


HALVES = ("left", "right")  # of an image, as words for masks


class GroupSettings(Section):
    """People who are shown in one image."""

    people: tuple[str, ...] = Field(min_length=1, description="Identities of the photographs.")
    masks: tuple[str, ...] | None = Field(
        default=None,
        description="Where each one's face is: left, right, or a PNG file of the images' size that "
        "is white there. null: nowhere; the faces of several people then melt into one.",
    )
    prompt: str = Field(default="photo of two persons", description="Of all images.")
    images: int = Field(default=4, ge=1, description="How many.")
    size: tuple[int, int] | None = Field(
        default=None, description="Height and width in pixels; null: the base model's square."
    )

    @model_validator(mode="after")
    def _a_mask_each(self) -> GroupSettings:
        if self.masks is not None and len(self.masks) != len(self.people):
            raise ValueError(
                f"{len(self.people)} people but {len(self.masks)} masks: give each person a mask, "
                "or nobody, for a morph"
            )
        return self


class EmbeddingSettings(Section):
    """What methods are told of each image that know a person by a face embedding."""

    likeness: tuple[float, float] = Field(
        default=(0.7, 0.9),
        description="Cosine of an image's embedding to the person's, drawn uniformly between the "
        "two; the paper has [0.5, 0.7] and [0.7, 0.9].",
    )
    attributes: dict[Attribute, tuple[float, float]] | None = Field(
        default={},
        description="Attributes drawn uniformly from a range, e.g. {age: [20, 60], yaw: [-60, 60]} "
        "in years and degrees; the others are those of a training image, together. null: none is "
        "told.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> EmbeddingSettings:
        if not -1 <= self.likeness[0] <= self.likeness[1] <= 1:
            raise ValueError("likeness must be two cosines, -1 <= first <= second <= 1")
        for name, (low, high) in (self.attributes or {}).items():
            if low > high:
                raise ValueError(f"attributes.{name}: [{low:g}, {high:g}] is no range")
        return self


class InventSettings(Section):
    """People who do not exist, of a study with identities: made_up."""

    people: int = Field(default=10_000, ge=1, description="How many (paper: 10 000).")
    anchors: Literal["tammes", "random", "manifold"] = Field(
        default="tammes",
        description="Directions as far apart as can be, as in the paper; random ones; or as far "
        "apart and pulled towards mixtures of in-the-wild faces.",
    )
    mixed: int = Field(
        default=6, ge=1, description="Faces of a mixture; those of 1 are somebody's, and refused."
    )
    pull: float = Field(
        default=0.5, ge=0, lt=1, description="Share of that pull in each movement of a direction."
    )
    most_alike: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Largest cosine of a direction to the embedding of a real person, in the wild "
        "or photographed, and to another direction; what is closer is refused.",
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
    negative_guidance: float = Field(
        default=0.0,
        ge=0,
        description="Lead every image away from what it would be of another person of the study, "
        "the same for all images of a person, by this share of the difference (NegFaceDiff: 0.5); "
        "not for untuned. 0: none.",
    )
    references: ReferenceSettings | None = Field(
        default=ReferenceSettings(),
        description="Photographs that methods look at which train nothing for a person.",
    )
    embeddings: EmbeddingSettings | None = Field(
        default=EmbeddingSettings(),
        description="What methods are told that know a person by a face embedding.",
    )
    store: Literal["files", "shards"] = Field(
        default="files",
        description="Finished images and their aligned faces as a PNG file each, or each person's "
        "in one tar archive, images.tar, as a shard of a WebDataset. Changes no image.",
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


class TogetherSettings(Section):
    """Images of several people, by methods that look at photographs; see sample_together."""

    groups: dict[str, GroupSettings] = Field(
        default_factory=dict,
        description="Name to who is shown how, e.g. {pair: {people: [ID_1, ID_2], masks: [left, "
        "right], size: [64, 96]}}.",
    )
    sample: SampleSettings = Field(
        default=SampleSettings(), description="Filled in from the section sample."
    )

    @property
    def mask_files(self) -> list[str]:
        """Paths of all masks that are files."""
        masks = [mask for group in self.groups.values() for mask in group.masks or ()]
        return sorted({*masks} - {*HALVES})


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
