"""Settings of the export step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline_steps.settings.base import Section


class ExportSettings(Section):
    """The dataset that is passed on: which images, in which layout, under which terms."""

    images: Literal["aligned", "samples"] = Field(
        default="aligned",
        description="aligned: faces on the 112x112 template, which recognisers train on; samples: "
        "the generated images in full, those in which a face was found.",
    )
    layout: Literal["folders", "reference", "webdataset"] = Field(
        default="folders",
        description="folders: images/<identity>/<index>; reference: <identity>/<index>, as the "
        "paper's public code reads datasets; webdataset: tar shards of images and JSON.",
    )
    image_format: Literal["png", "jpg"] = Field(
        default="png", description="png is lossless; jpg is of quality 95, without subsampling."
    )
    images_per_shard: int = Field(
        default=10_000, ge=1, description="Images per tar of the layout webdataset."
    )
    title: str = Field(
        default="Synthetic faces of consenting people", description="Headline of the card."
    )
    licence: str = Field(
        default="",
        description="Licence of the dataset, an SPDX identifier or 'other'; empty: not stated yet. "
        "It cannot allow more than the photographs' terms and the weights' licences do.",
    )
    contact: str = Field(
        default="", description="Whom subjects and users write to, e.g. to withdraw; for the card."
    )
