"""Settings of the recognise step: how face-recognition models are trained."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline_steps.study.settings.base import DataPath, Section


class RecogniseSettings(Section):
    """Training of a recogniser on aligned images. Defaults are the paper's (Table 3)."""

    backbone: Literal["iresnet18", "iresnet34", "iresnet50", "iresnet100", "custom"] = Field(
        default="iresnet18",
        description="Network; custom: the layers and widths below. The paper uses iresnet18, its "
        "public code iresnet50.",
    )
    layers: tuple[int, int, int, int] | None = Field(
        default=None, description="Blocks of the four stages; only with backbone custom."
    )
    widths: tuple[int, int, int, int, int] | None = Field(
        default=None,
        description="Channels of the stem and the four stages; only with backbone custom.",
    )
    embedding_dim: int = Field(default=512, ge=2, description="Length of the embedding.")
    input_size: int = Field(
        default=112,
        ge=16,
        le=112,
        multiple_of=16,
        description="Pixels; smaller than 112 shrinks the aligned images (area average) to save "
        "time where they hold no finer detail.",
    )
    dropout: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="Probability of dropping a feature before the embedding.",
    )
    loss: Literal["cosface", "arcface", "adaface"] = Field(
        default="cosface",
        description="Margin loss. adaface follows the norms of the raw embeddings (Kim et al., "
        "2022); what the paper's public code calls so is cosface with margin 0.4.",
    )
    scale: float = Field(default=64.0, gt=0, description="s of the margin loss.")
    margin: float = Field(
        default=0.35,
        ge=0,
        description="m of the margin loss: cosine (cosface), radians (arcface), both (adaface, "
        "whose paper has 0.4).",
    )
    learning_rate_per_512: float = Field(
        default=0.1,
        gt=0,
        description="Learning rate at batch size 512, scaled linearly with the batch size: 0.025 "
        "at 128.",
    )
    batch_size: int = Field(
        default=128, ge=2, description="Images per step; a smaller set makes one smaller batch."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay of SGD.")
    clip_norm: float = Field(
        default=5.0, gt=0, description="Largest Euclidean norm of the backbone's gradient."
    )
    epochs: int = Field(default=200, ge=1, description="At most so many passes over the images.")
    schedule: Literal["plateau", "step"] = Field(
        default="plateau",
        description="plateau: the learning rate drops when validation stops improving, and "
        "training stops early. step: it drops after the epochs in milestones, and all epochs are "
        "trained. The epoch of the best validation is kept in both.",
    )
    milestones: tuple[int, ...] = Field(
        default=(),
        description="Epochs after which the learning rate drops; with schedule step, and only "
        "then.",
    )
    plateau_patience: int = Field(
        default=4, ge=0, description="Epochs without a new best before the learning rate drops."
    )
    plateau_factor: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Factor by which the learning rate drops, with either schedule.",
    )
    stop_patience: int = Field(
        default=6, ge=1, description="Training stops after so many epochs without a new best."
    )
    first_validated_epoch: int = Field(
        default=1,
        ge=1,
        description="Epochs before this one are neither validated nor counted for patience; 1 "
        "validates after every epoch, as the paper does.",
    )
    validation: DataPath = Field(
        default="lfw",
        description="What chooses the epoch and steers the learning rate: a name among the "
        "study's benchmarks, which is then reported with the role validation and never among the "
        "tests (lfw, as published), or the path of a .bin file that is none of them, so that all "
        "of them are tests.",
    )
    flip: bool = Field(default=True, description="Mirror every other training image at random.")
    augmentation: Literal["none", "randaugment"] = Field(
        default="none", description="Further augmentation of training images."
    )
    randaugment_operations: int = Field(
        default=4, ge=1, description="Operations per image of RandAugment."
    )
    randaugment_magnitude: int = Field(
        default=16, ge=0, le=30, description="Magnitude of RandAugment, of 31 levels."
    )
    merge_sources: bool = Field(
        default=True,
        description="With several training sources: images of one identity name are one class "
        "(ID_3 synthetic and ID_3 real). False: every source has classes of its own.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Arithmetic of the convolutions in training (autocast)."
    )
    repetitions: int = Field(
        default=1, ge=1, description="Models trained per training set, with seeds of their own."
    )

    @property
    def validation_name(self) -> str:
        """Name of what chooses the epoch, without folder and ending."""
        return benchmark_name(self.validation)

    @model_validator(mode="after")
    def _custom_has_its_sizes(self) -> RecogniseSettings:
        custom = self.backbone == "custom"
        if custom != (self.layers is not None) or custom != (self.widths is not None):
            raise ValueError("layers and widths are given with backbone custom, and only then")
        return self

    @model_validator(mode="after")
    def _steps_have_milestones(self) -> RecogniseSettings:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones are given with schedule step, and only then")
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or any(not 1 <= epoch < self.epochs for epoch in self.milestones):
            raise ValueError(f"milestones are rising epochs below epochs ({self.epochs})")
        return self


def benchmark_name(path: str) -> str:
    """Name of a benchmark: its file's name without folder and ending."""
    return re.sub(r"\.bin$", "", path.rpartition("/")[2])


class VerifySettings(Section):
    """Verification protocol. Defaults are InsightFace's, which the paper uses."""

    folds: int = Field(
        default=10, ge=2, description="Consecutive folds; each is judged by the others' threshold."
    )


class VerifyTemplatesSettings(Section):
    """Template verification, the protocol of the IJB benchmarks."""

    fmrs: tuple[float, ...] = Field(
        default=(1e-5, 1e-4, 1e-3, 1e-2),
        min_length=1,
        description="False match rates at which the true positive rate is told; one needs at "
        "least 1 / rate impostor pairs.",
    )

    @field_validator("fmrs", mode="after")
    @classmethod
    def _are_rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate < 1 for rate in value):
            raise ValueError("rates lie between 0 and 1")
        return value


class RecognitionSections(Section):
    """Recognisers: trained, and tested on pairs and on templates."""

    template_sets: tuple[DataPath, ...] = Field(
        default=(),
        description="Folders of template sets (IJB-B, IJB-C or one's own) for 1:1 verification: "
        "images/, templates.csv (template, media, file), pairs.csv (template_a, template_b, same).",
    )
    recognise: RecogniseSettings = Field(default=RecogniseSettings())
    verify: VerifySettings = Field(default=VerifySettings())
    verify_templates: VerifyTemplatesSettings = Field(default=VerifyTemplatesSettings())
