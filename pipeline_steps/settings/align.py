"""Settings of the align step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section
from pipeline_steps.settings.detector import DetectorSettings


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
