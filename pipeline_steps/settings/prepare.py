"""Settings of the prepare step: where the photographs are and how they are cropped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline_steps.settings.base import Section
from pipeline_steps.settings.detector import DetectorSettings


class ExpectedSettings(Section):
    """What the database should hold; differences are listed in dataset/report.json and the log, and
    stop nothing. Defaults are the Tufts Face Database's, as the paper and its public code use it.
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

    sources: tuple[str, ...] = Field(
        default=tuple(f"data/tfd/TD_RGB_A_Set{number}.zip" for number in range(1, 5)),
        min_length=1,
        description="Archives (.zip, .tar) or folders with one folder of photographs per "
        "participant; paths from the working folder.",
    )
    gender_table: str | None = Field(
        default=None,
        description="CSV with the columns participant or identity, and gender (M or F), consent "
        "(true or false), or both; photographs of people who do not consent are never read. null: "
        "genders unknown.",
    )
    withdrawn: str | None = Field(
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
