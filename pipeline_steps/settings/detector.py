"""Settings of the face detector, shared by the steps that search faces."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline_steps.settings.base import Section

Probability = Annotated[float, Field(ge=0, lt=1)]


class DetectorSettings(Section):
    """MTCNN; defaults are facenet-pytorch's, which the paper uses."""

    min_face_size: int = Field(
        default=20, ge=12, description="Side of the smallest face that is searched for, pixels."
    )
    thresholds: tuple[Probability, Probability, Probability] = Field(
        default=(0.6, 0.7, 0.7),
        description="Face probability that a candidate must exceed after each of the three stages.",
    )
