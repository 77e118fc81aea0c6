"""Settings of the features step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class FeaturesSettings(Section):
    """Which extractors run follows from the scores; their options stand with their weights."""

    check_colour: bool = Field(
        default=True,
        description="Refuse sets of faces that are mostly bluer than red, which are BGR images "
        "taken as RGB. False only where the light really was blue.",
    )
