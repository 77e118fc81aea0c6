"""Settings of the tables step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class TablesSettings(Section):
    """How the tables are presented; the numbers come from the score and verify steps."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
    intervals: bool = Field(
        default=False,
        description="Print confidence intervals into the Markdown and LaTeX tables; the paper's "
        "tables have none. The CSV files always hold them.",
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, description="Level of the intervals of differences."
    )
