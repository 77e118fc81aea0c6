"""Settings of the step that renders the embedded world's photographs."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


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
    workers: int = Field(
        default=2, ge=1, le=256, description="Processes that render side by side; changes no image."
    )
