"""Settings of the features step."""

from __future__ import annotations

from pipeline_steps.settings.base import Section


class FeaturesSettings(Section):
    """Nothing to set: which extractors run follows from the scores, their options stand with their
    weights."""
