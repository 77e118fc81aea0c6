"""Settings of the verify_templates step: 1:1 verification of templates."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline_steps.settings.base import Section


class VerifyTemplatesSettings(Section):
    """Template verification, the protocol of the IJB benchmarks."""

    fmrs: tuple[float, ...] = Field(
        default=(1e-5, 1e-4, 1e-3, 1e-2),
        min_length=1,
        description="False match rates at which the true positive rate is told; one needs at "
        "least 1 / rate impostor pairs.",
    )

    @field_validator("fmrs", mode="after")
    @classmethod
    def _are_rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate < 1 for rate in value):
            raise ValueError("rates lie between 0 and 1")
        return value
