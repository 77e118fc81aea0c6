"""Settings of the check_dataset step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline_steps.settings.base import Section


class CheckDatasetSettings(Section):
    """Whether the prepared dataset holds everybody; nothing else depends on these settings."""

    on_empty_identity: Literal["error", "skip"] = Field(
        default="error",
        description="What to do when no photograph of an identity can be used. The others are "
        "computed without it either way; error: the run ends with an error that names it; skip: it "
        "is left out for good.",
    )
