"""Do files belong together? What aggregates over a study asks before it shows them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.study.artefacts import source_of
from pipeline_steps.study.record import (
    Record,
    check_same_extractor,
    check_same_images,
    check_sources,
    read_record,
    refuse_mixtures,
    refuse_other_study,
)
from pipeline_steps.study.settings.base import Frozen


def check_records(frozen: Frozen[Any], paths: Sequence[Path]) -> dict[Path, Record]:
    """Refuse files of another study or seed, changed files, and such as were made from different
    versions of one input, by the records beside them. Files without a record pass.

    Returns:
        The records found.

    Raises:
        StepError: naming the files that do not belong together.
    """
    found = {path: read_record(path) for path in paths}
    records = {path: record for path, record in found.items() if record is not None}
    refuse_other_study(frozen, records)
    refuse_mixtures(records)
    return records


def check_features(
    embeddings: Sequence[Path], poses: Sequence[Path], manifests: Sequence[Path]
) -> None:
    """Refuse features by different weights, or of other images than the manifests list.

    Args:
        embeddings: of the photographs, then of every variant.
        poses: head poses of the same sets.
        manifests: of the photographs, then of every variant's samples.

    Raises:
        StepError: naming two files that do not belong together.
    """
    headers = {path: load_features(path).metadata for path in (*embeddings, *poses)}
    check_same_extractor(list(headers.items()))
    by_folder = {path.parent: path for path in embeddings}
    for path in poses:
        other = by_folder[path.parent]
        check_same_images(path, headers[path], other, headers[other].get("images"))
    listed = {source_of(path, "samples").name: path for path in manifests[1:]}
    listed["real"] = manifests[0]
    for path in embeddings:
        manifest = listed[source_of(path, "features").name]
        known = read_manifest(manifest)
        if "sha256" in known:
            check_sources(path, headers[path], manifest, known["sha256"])


def check_page(frozen: Frozen[Any], tables: Sequence[Path], figures: Sequence[Path]) -> None:
    """Refuse tables and figures that show different features.

    Args:
        frozen: the page's configuration.
        tables, figures: files of both; of tables also what they were gathered from counts, as far
            as it is still there.

    Raises:
        StepError: naming the files that do not belong together.
    """
    shown = check_records(frozen, [*tables, *figures])
    sources = {Path(name) for record in shown.values() for name in record["inputs"]}
    behind = [path for path in sorted(sources) if path.suffix == ".csv" and path.is_file()]
    refuse_mixtures(shown | check_records(frozen, behind))
