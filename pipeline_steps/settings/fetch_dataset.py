"""Settings of the step that fetches the archives of photographs."""

from __future__ import annotations

from pydantic import Field

from pipeline_steps.settings.base import Section

DATABASE = "http://tdface.ece.tufts.edu"


class FetchDatasetSettings(Section):
    """Archives of photographs that python -m pipeline_steps.fetch_dataset gets from the database's
    own page. No step of a study downloads anything.
    """

    accept_terms: bool = Field(
        default=False,
        description="Whether you have read the terms of the database and accept them; nothing is "
        "fetched before.",
    )
    terms: str = Field(
        default=f"{DATABASE}: for research alone, not to be passed on",
        description="Where the terms stand, and what they say.",
    )
    archives: dict[str, str] = Field(
        default={
            f"data/tfd/TD_RGB_A_Set{number}.zip": (
                f"{DATABASE}/downloads/TD_RGB_A/TD_RGB_A_Set{number}.zip"
            )
            for number in range(1, 5)
        },
        description="Where each archive goes, and its address.",
    )
    sha256: dict[str, str] = Field(
        default_factory=dict,
        description="Hashes of archives, by where they go; without one any whole archive is taken.",
    )
