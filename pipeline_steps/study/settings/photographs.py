"""Settings of the prepare step: where the photographs are and how they are cropped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline_steps.study.settings.base import DataPath, Section

Probability = Annotated[float, Field(ge=0, lt=1)]


class DetectorSettings(Section):
    """MTCNN; defaults are facenet-pytorch's, which the paper uses."""

    min_face_size: int = Field(
        default=20, ge=12, description="Side of the smallest face that is searched for, pixels."
    )
    thresholds: tuple[Probability, Probability, Probability] = Field(
        default=(0.6, 0.7, 0.7),
        description="Face probability that a candidate must exceed after each of the three stages.",
    )


class ExpectedSettings(Section):
    """What the database should hold; check_dataset lists differences in dataset/complete.json and
    its log, and they stop nothing. Defaults are the Tufts Face Database's, as the paper and its
    public code use it.
    """

    identities: tuple[int, int] | None = Field(
        default=(105, 107), description="Fewest and most people; null: not checked."
    )
    images_per_identity: int | None = Field(
        default=21, ge=1, description="Usable images of each person; null: not checked."
    )
    cameras: tuple[int, ...] | None = Field(
        default=(1, 2, 3), description="Numbers of the cameras; null: not checked."
    )
    positions: tuple[int, ...] | None = Field(
        default=tuple(range(9)), description="Numbers of the positions; null: not checked."
    )


class PrepareSettings(Section):
    """From photographs of consenting people to square face crops."""

    sources: tuple[DataPath, ...] = Field(
        default=tuple(f"data/tfd/TD_RGB_A_Set{number}.zip" for number in range(1, 5)),
        min_length=1,
        description="Archives (.zip, .tar) or folders with one folder of photographs per "
        "participant; paths from the working folder.",
    )
    participant_level: int | None = Field(
        default=None,
        ge=1,
        description="How many folders deep a participant's folder lies in a source, 1 for those at "
        "its top; folders below are that person's. null: the innermost folders, where they tell "
        "people apart.",
    )
    gender_table: DataPath | None = Field(
        default=None,
        description="CSV with the columns participant or identity, and gender (M or F), consent "
        "(true or false), or both; photographs of people who do not consent are never read, and a "
        "refusal that matches nobody is an error, unless a column absent says true. null: genders "
        "unknown.",
    )
    withdrawn: DataPath | None = Field(
        default=None,
        description="CSV of people who have withdrawn, with the column identity or participant; "
        "their photographs are never read. Written by the withdraw step. null: withdrawn.csv "
        "beside the first of the sources.",
    )
    consent: str = Field(
        default="not stated",
        description="What the subjects consented to, or under which terms the images were "
        "obtained; goes into the identity table.",
    )
    file_pattern: str | None = Field(
        default=r"TD_RGB_A_(?P<camera>\d+)_(?P<position>\d+)\.jpe?g",
        description="Regular expression of a whole file name, upper or lower case, with the named "
        "groups camera and position where there are such numbers; null: any image. The default is "
        "inferred from public examples of the Tufts Face Database.",
    )
    positions: tuple[int, ...] | None = Field(
        default=(1, 2, 3, 4, 5, 6, 7),
        description="Camera positions that are kept; null: all. The paper keeps 1 to 7 of 0 to 8, "
        "which leaves out the two extreme profiles.",
    )
    resolution: int = Field(
        default=512,
        ge=32,
        le=4096,
        description="Side of the prepared images in pixels: the base model's resolution.",
    )
    margin: float = Field(
        default=2.0,
        ge=1.0,
        le=10.0,
        description="Side of the crop over the longer side of the face's box; 2 shows the whole "
        "head, hair and some background.",
    )
    min_face_side: int = Field(
        default=40,
        ge=12,
        description="Photographs whose face box is narrower or lower than this, in the "
        "photograph's pixels, are left out: enlarging them would teach blur.",
    )
    detection_side: int = Field(
        default=1024,
        ge=64,
        description="Faces are searched in a copy shrunk to this longer side, pixels.",
    )
    on_broken_source: Literal["error", "salvage"] = Field(
        default="error",
        description="What to do with an archive that ends too early: stop with an error that names "
        "it, or use its whole files and report it.",
    )
    expected: ExpectedSettings = Field(
        default=ExpectedSettings(), description="What the database should hold."
    )
    detector: DetectorSettings = Field(
        default=DetectorSettings(), description="How faces are searched."
    )

    @property
    def withdrawn_table(self) -> str:
        """Path of the table of people who have withdrawn, whether it is there or not."""
        return self.withdrawn or str(Path(self.sources[0]).parent / "withdrawn.csv")

    @field_validator("file_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
            unknown = set(groups) - {"camera", "position"}
            if unknown:
                raise ValueError(f"unknown groups {sorted(unknown)}; camera and position are known")
        return value


class CheckDatasetSettings(Section):
    """Whether the prepared dataset holds everybody; nothing else depends on these settings."""

    on_empty_identity: Literal["error", "skip"] = Field(
        default="error",
        description="What to do when no photograph of an identity can be used. The others are "
        "computed without it either way; error: the run ends with an error that names it; skip: it "
        "is left out for good.",
    )
    expected: ExpectedSettings = Field(
        default=ExpectedSettings(),
        description="Filled in from prepare.expected when a study is frozen.",
    )


class EmbedSettings(Section):
    """Embeddings of the prepared images, the positives of the identity losses."""

    detector: DetectorSettings = Field(
        default=DetectorSettings(),
        description="How faces are searched; as in fine-tuning, so that both sides of the identity "
        "losses see the same kind of face region.",
    )
    resolutions: tuple[Annotated[int, Field(ge=32)], ...] = Field(
        default=(),
        description="Sides in pixels to which the prepared images are shrunk and embedded besides; "
        "the resolutions of the study's base models are always among them.",
    )


class AlignSettings(Section):
    """From images to 112x112 faces on the ArcFace template."""

    padding: float = Field(
        default=0.5,
        ge=0,
        le=2,
        description="Share of height and width by which each side is extended in black before the "
        "search. The paper's half doubles the sides, which finds faces that fill the image.",
    )
    detector: DetectorSettings = Field(
        default=DetectorSettings(), description="How faces are searched."
    )


DATABASE = "http://tdface.ece.tufts.edu"


class FetchDatasetSettings(Section):
    """Archives of photographs that python -m pipeline_steps.fetch_dataset gets from the database's
    own page. No step of a study downloads anything.
    """

    accept_terms: bool = Field(
        default=False,
        description="Whether you have read the terms of the database and accept them; nothing is "
        "fetched before.",
    )
    terms: str = Field(
        default=f"{DATABASE}: for research alone, not to be passed on",
        description="Where the terms stand, and what they say.",
    )
    archives: dict[DataPath, str] = Field(
        default={
            f"data/tfd/TD_RGB_A_Set{number}.zip": (
                f"{DATABASE}/downloads/TD_RGB_A/TD_RGB_A_Set{number}.zip"
            )
            for number in range(1, 5)
        },
        description="Where each archive goes, and its address.",
    )
    sha256: dict[DataPath, str] = Field(
        default_factory=dict,
        description="Hashes of archives, by where they go; without one any whole archive is taken.",
    )


class RenderDemoWorldSettings(Section):
    """How much of the embedded world is rendered, and at which size."""

    participants: int = Field(
        default=8,
        ge=4,
        le=113,
        description="People photographed in the laboratory (TFD has 113); spread over four "
        "archives.",
    )
    photograph_size: int = Field(
        default=384,
        ge=128,
        le=1024,
        description="Side of a laboratory photograph, pixels; the face fills about a third.",
    )
    in_the_wild: int = Field(
        default=200,
        ge=20,
        le=70000,
        description="Images of the in-the-wild reference set, one each.",
    )
    in_the_wild_size: int = Field(
        default=128, ge=64, le=512, description="Side of an in-the-wild image, pixels."
    )
    benchmark_pairs: int = Field(
        default=200,
        ge=40,
        multiple_of=20,
        description="Pairs of each verification benchmark (LFW has 6000).",
    )
    validation_pairs: int = Field(
        default=100,
        ge=40,
        multiple_of=20,
        description="Pairs of the set that chooses recognisers' epochs and is no test.",
    )


class PhotographsSections(Section):
    """Photographs: rendered or fetched, prepared, embedded, aligned."""

    render_demo_world: RenderDemoWorldSettings = Field(default=RenderDemoWorldSettings())
    fetch_dataset: FetchDatasetSettings = Field(default=FetchDatasetSettings())
    prepare: PrepareSettings
    check_dataset: CheckDatasetSettings = Field(default=CheckDatasetSettings())
    embed: EmbedSettings = Field(default=EmbedSettings())
    align: AlignSettings = Field(default=AlignSettings())
