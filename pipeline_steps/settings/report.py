"""Settings of the report step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class ReportSettings(Section):
    """What the report says beside the numbers."""

    title: str = Field(
        default="Synthetic faces of consenting people", description="Headline of the page."
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    expected_order: tuple[str, ...] = Field(
        default=("dreambooth", "portraitbooth", "idbooth"),
        min_length=2,
        description="Methods in the order of rising Fisher ratio that the paper reports; the page "
        "says where it holds.",
    )
