"""The prepared dataset: its tables, and its identities as fine-tuning and sampling see them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError

if TYPE_CHECKING:
    from pipeline_steps.identities.candidates import Collection

AGAIN = "delete it and run again"
TARGETS = "targets.safetensors"  # anchors of people who do not exist, a row for each identity

Row = dict[str, Any]


def drop_duplicates(prepared: Sequence[tuple[Row, str]]) -> list[Row]:
    """Manifest rows, given with the hashes of their photographs; bytes of an earlier kept one are
    not kept again.
    """
    first: dict[str, str] = {}
    rows = []
    for row, digest in prepared:
        if row["kept"] and digest in first:
            row = row | dict.fromkeys(("file", "sha256", "box", "landmarks", "probability"))
            row |= {"kept": False, "reason": f"duplicate of {first[digest]}"}
        elif row["kept"]:
            first[digest] = row["source"]
        rows.append(row)
    return rows


def identity_table(
    rows: Sequence[Row], identities: Sequence[str], collection: Collection, consent: str
) -> str:
    """The text of identities.csv."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["identity", "gender", "n_images", "source", "consent", "folder"])
    for identity in identities:
        own = [row for row in rows if row["kept"] and row["identity"] == identity]
        sources = dict.fromkeys(row["source"].split("/", 1)[0] for row in own)
        said = collection.participants.get(identity)
        gender = said.gender if said else ""
        folder = collection.folders[identity]
        table.writerow([identity, gender, len(own), ";".join(sources), consent, folder])
    return buffer.getvalue()


@dataclass(frozen=True)
class Subject:
    """One identity of the dataset.

    Attributes:
        identity: Its name.
        gender: As in the identity table, None where that says nothing.
        files: Kept images, relative to the dataset.
        sha256: Hash of each file.
    """

    identity: str
    gender: str | None
    files: tuple[str, ...]
    sha256: tuple[str, ...]


def read_subjects(dataset: Path) -> list[Subject]:
    """All identities of a dataset in natural order (ID_2 before ID_10).

    Raises:
        StepError: a table is missing or lacks a column, or there is no identity.
    """
    table = dataset / "identities.csv"
    if not table.is_file():
        raise StepError(f"identity table {table} is missing: run prepare first")
    try:
        identities = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' errors of a cut file are ValueErrors
        raise StepError(f"identity table {table} is broken ({error}): {AGAIN}") from error
    if not {"identity", "gender"} <= set(identities.columns):
        raise StepError(f"{table} lacks the columns identity and gender: run prepare again")
    if not len(identities):
        raise StepError(f"{table} names no identity: the sources hold no usable image")
    manifest = read_manifest(dataset / "manifest.parquet", ["identity", "file", "sha256", "kept"])
    kept = manifest[manifest["kept"].astype(bool)].sort_values("file")
    absent = sorted(set(kept["identity"]) - set(identities["identity"]), key=natural_key)
    if absent:
        raise StepError(
            f"{table} lacks {', '.join(absent)}, whom the manifest beside it keeps: it was cut or "
            f"changed: {AGAIN}"
        )
    subjects = []
    rows = dict(iter(kept.groupby("identity")))
    for identity, gender in zip(identities["identity"], identities["gender"], strict=True):
        own = rows.get(identity, kept[:0])
        subjects.append(Subject(identity, gender or None, tuple(own["file"]), tuple(own["sha256"])))
    return sorted(subjects, key=lambda subject: natural_key(subject.identity))


def share_of(subjects: Sequence[Subject], share: int, shares: int) -> list[Subject]:
    """The people of one job: every ``shares``-th subject, beginning with number ``share``.

    Raises:
        StepError: there is no such share.
    """
    if not 0 <= share < shares:
        raise StepError(f"share {share} of {shares}: a number from 0 to {shares - 1} expected")
    return list(subjects[share::shares])


def embeddings_file(dataset: Path, subject: Subject, resolution: int) -> Path:
    """Where the embed step puts a subject's embeddings for a base model of that resolution."""
    index = dataset / "embeddings" / "index.json"
    told = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    shrunk = resolution in told.get("resolutions", ())
    size = f"@{resolution}" if shrunk else ""
    return dataset / "embeddings" / f"{subject.identity}{size}.safetensors"


def read_embeddings(
    path: Path, files: Sequence[str], made_by: Mapping[str, str]
) -> NDArray[np.float32]:
    """Embeddings of the named images, whatever the order in the file.

    Args:
        path: Written with the key "embeddings".
        files: Images; those of one folder are told apart by their file names.
        made_by: The network that they are compared by, see ``weights.made_by``.

    Returns:
        float32 [len(files), d]; NaN for an image without an embedding, in which no face was found.

    Raises:
        StepError: the file is missing, broken, by another network, or has none of the images.
    """
    stored = load_features(path, key="embeddings", made_by=made_by)
    if not stored.files:
        raise StepError(
            f"{path} is empty, for no face is found in any of the images: replace the photographs"
        )
    rows = pd.DataFrame(stored.features, [PurePosixPath(name).name for name in stored.files])
    names = [PurePosixPath(name).name for name in files]
    if rows.index.intersection(names).empty:
        raise StepError(f"{path} has no embedding of any wanted image: run its step again")
    return rows.reindex(names).to_numpy(np.float32)
