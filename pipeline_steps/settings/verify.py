"""Settings of the verify step: how a trained recogniser is tested on the benchmarks."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class VerifySettings(Section):
    """Verification protocol. Defaults are InsightFace's, which the paper uses."""

    folds: int = Field(
        default=10, ge=2, description="Consecutive folds; each is judged by the others' threshold."
    )
