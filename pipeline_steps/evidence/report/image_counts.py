"""How many images of each set were kept, and why the others were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.tables.names import Names, order_key, variant_key
from pipeline_steps.evidence.tables.variants import variant_name
from pipeline_steps.identities.participants import NO_CONSENT
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.study.sources import source_of


@dataclass(frozen=True)
class ImageCount:
    """Images of one manifest.

    Attributes:
        kind: "photographs", "reference" (aligned) or "generated" (aligned).
        what: name as shown.
        images, kept, dropped: counts.
        reasons: reasons of the dropped ones with their counts, most frequent first.
    """

    kind: str
    what: str
    images: int
    kept: int
    dropped: int
    reasons: str


def count_images(kind: str, what: str, manifest: pd.DataFrame) -> ImageCount:
    """Counts of a manifest with the columns kept and reason."""
    kept = manifest["kept"].astype(bool)
    reasons = manifest.loc[~kept, "reason"].fillna("").replace("", "no reason given")
    counts = sorted(reasons.value_counts().items(), key=lambda item: (-int(item[1]), str(item[0])))
    return ImageCount(
        kind=kind,
        what=what,
        images=len(manifest),
        kept=int(kept.sum()),
        dropped=int((~kept).sum()),
        reasons=", ".join(f"{reason} ({count})" for reason, count in counts),
    )


def counts_of(paths: Sequence[Path], names: Names) -> list[ImageCount]:
    """Images of every manifest, photographs first.

    Args:
        paths: dataset/manifest.parquet and aligned/<source>/manifest.parquet.
        names: display names.
    """
    found: list[tuple[tuple[Any, ...], ImageCount]] = []
    for path in paths:
        frame = read_manifest(path, ["kept", "reason"])
        if is_dataset(path):
            found.append(((0,), count_images("photographs", "Photographs, prepared", frame)))
            continue
        source = source_of(path, "aligned")
        if source.is_reference:
            what = f"{names(source.name)}, aligned"
            key: tuple[Any, ...] = (1, order_key(source.name))
            found.append((key, count_images("reference", what, frame)))
            continue
        key = (2, variant_key(source.base_model, source.prompts, source.method))
        found.append((key, count_images("generated", variant_name(source, names), frame)))
    return [count for _, count in sorted(found, key=lambda item: item[0])]


def people_in(paths: Sequence[Path]) -> str:
    """How many identities have a kept photograph, of how many who consent: "20 of 21", or "21"."""
    used = everybody = 0
    for path in filter(is_dataset, paths):
        frame = read_manifest(path, ["identity", "kept", "reason"]).dropna(subset=["identity"])
        frame = frame[frame["reason"] != NO_CONSENT]
        used += frame.loc[frame["kept"].astype(bool), "identity"].nunique()
        everybody += frame["identity"].nunique()
    return str(used) if used == everybody else f"{used} of {everybody}"


def is_dataset(path: Path) -> bool:
    """Whether this is the manifest of the prepared photographs."""
    return path.parent.name == "dataset"
