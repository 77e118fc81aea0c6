"""Rendered faces as people's photographs, and a dataset prepared, embedded and aligned of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline_steps import align, embed, prepare
from pipeline_steps.demo_world.rendering.population import CONSENTED, laboratory_session, person
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.weights import Weights
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import (
    AlignSettings,
    EmbedSettings,
    PrepareSettings,
)

ROOT = Path(__file__).parents[2]
SIDE = 128
Picture = NDArray[np.uint8]


def portraits(number: int, count: int) -> list[Picture]:
    """Photographs of one rendered person, looking ahead, uint8 [128, 128, 3]."""
    who = person(0, CONSENTED, number)
    session = [one for _, position, one in laboratory_session(0, number) if position in (3, 4, 5)]
    return [who.photograph(one, SIDE, 1).image for one in session[:count]]


@pytest.fixture(scope="session")
def faces() -> dict[str, list[Picture]]:
    """Four photographs each of three people."""
    return {name: portraits(number, 4) for number, name in enumerate(("anna", "bob", "eve"), 1)}


@pytest.fixture(scope="session")
def recogniser() -> Weights:
    """The embedded world's guide."""
    return Weights(
        name="demo_recogniser",
        task="recogniser",
        architecture="iresnet",
        source=str(ROOT / "resources/demo_world/recogniser/model.safetensors"),
        licence="Apache-2.0",
        commercial_use=True,
        options={"layers": [1, 1, 1, 1], "widths": [16, 16, 32, 64, 64]},
    )


def encoded(picture: Picture | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class Prepared:
    """A dataset: its folder, the manifest by source, the index of embeddings, the aligned rows."""

    out: Path
    rows: pd.DataFrame
    index: dict[str, Any]
    aligned: list[dict[str, Any]]


def prepared(out: Path, sources: list[Path], recogniser: Weights, **changes: Any) -> Prepared:
    """Sources through prepare, embed and align."""
    settings = PrepareSettings(
        **{
            "sources": [str(source) for source in sources],
            "file_pattern": None,
            "resolution": 64,
            "detection_side": 192,
            "min_face_side": 20,
            "expected": {
                "identities": None,
                "images_per_identity": None,
                "cameras": None,
                "positions": None,
            },
            **changes,
        }
    )
    weights = {"recogniser": recogniser}
    prepare.run(Frozen("test", "prepare", 0, settings, weights), out=out, device="cpu")
    index = embed.run(
        Frozen("test", "embed", 0, EmbedSettings(), weights),
        dataset=out,
        device="cpu",
    )
    aligned = align.run(
        Frozen("test", "align", 0, AlignSettings(padding=0.1)),
        out=out / "aligned",
        manifest=out / "manifest.parquet",
        device="cpu",
    )
    return Prepared(
        out, read_manifest(out / "manifest.parquet").set_index("source"), index, aligned
    )
