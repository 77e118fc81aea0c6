"""Settings of the features step. Which extractor runs stands in the frozen weights."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class FeaturesSettings(Section):
    """What extractors cannot read off their weights."""

    focal_lengths_per_side: float = Field(
        default=4.0,
        gt=0,
        description="Focal length over image side that head pose from landmarks assumes; 4 is a "
        "face that fills two thirds of the image, seen from about a metre.",
    )
