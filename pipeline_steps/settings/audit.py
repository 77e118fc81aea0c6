"""Settings of the audit step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section


class AuditSettings(Section):
    """When a generated image, or a whole identity, counts as somebody else's or as a copy."""

    recogniser: str | None = Field(
        default=None,
        description="Recogniser that judges, by its name in config/models.yaml; null: the last of "
        "score.identity.recognisers, where the independent one belongs.",
    )
    fmr: float = Field(
        default=0.001,
        gt=0,
        lt=1,
        description="False match rate among the photographs at which two images count as one "
        "person.",
    )
    search_rate: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the photographs that may resemble anybody in the in-the-wild set: "
        "the larger that set, the more often somebody in it looks alike by chance.",
    )
    copy_ratio: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="A near copy is closer to a photograph, in pixels, than this share of the "
        "distance of two different photographs of one person that are hardly ever closer.",
    )
    pairs: int = Field(
        default=6, ge=1, le=50, description="Image pairs shown per check, the most suspicious ones."
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Display names beside the built-in ones, e.g. real: TFD, wild: FFHQ.",
    )
