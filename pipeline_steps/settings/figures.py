"""Settings of the figures step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline_steps.settings.base import Section


class FiguresSettings(Section):
    """What the figures show and how large they are."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    colours: dict[str, str] = Field(
        default_factory=dict,
        description="Colour per method beside the built-in ones, which are told apart with any "
        "colour vision (Okabe and Ito, 2008).",
    )
    width: float = Field(
        default=5.5, gt=2, le=12, description="Width in inches; 5.5 is the paper's text width."
    )
    dpi: int = Field(default=200, ge=72, le=600, description="Resolution of the PNG files.")
    bins: int = Field(default=40, ge=10, le=400, description="Bins of the distributions.")
    impostors: Literal["all", "equal"] = Field(
        default="all",
        description="Impostor pairs: all of them, or as many as genuine ones by a seeded draw. The "
        "paper draws; all pairs estimate the same numbers without the draw's noise.",
    )
    identities: tuple[str, ...] = Field(
        default=(),
        description="Identities to show, in this order; empty: the first ones in natural order, so "
        "that nobody picks the prettiest.",
    )
    prompts: str = Field(
        default="complex",
        description="Prompt set that the image grids show; where a study has it not, its last one.",
    )
    samples_identities: int = Field(
        default=1, ge=1, le=4, description="Identities in the figure of samples by method."
    )
    samples_columns: int = Field(
        default=6, ge=1, le=12, description="Images per row in the figure of samples by method."
    )
    recogniser: str | None = Field(
        default=None,
        description="Recogniser of all similarities shown, by its name in config/models.yaml; "
        "null: the last of score.identity.recognisers, where the independent one belongs.",
    )
    attributes: dict[str, str] = Field(
        default_factory=dict,
        description="What prompts may name beside the built-in expression, place and view: name to "
        "a regular expression whose group is the value; the figure of attributes has a part for "
        "each.",
    )
    overview_method: str = Field(
        default="idbooth", description="Method of the overview; where absent, the study's last one."
    )
    overview_identities: int = Field(default=6, ge=1, le=12, description="Rows of the overview.")
    overview_columns: int = Field(
        default=6, ge=1, le=12, description="Generated images per row of the overview."
    )
