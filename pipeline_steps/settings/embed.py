"""Settings of the embed step."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section
from pipeline_steps.settings.detector import DetectorSettings


class EmbedSettings(Section):
    """Embeddings of the prepared images, the positives of the identity losses."""

    detector: DetectorSettings = Field(
        default=DetectorSettings(),
        description="How faces are searched; as in fine-tuning, so that both sides of the identity "
        "losses see the same kind of face region.",
    )
