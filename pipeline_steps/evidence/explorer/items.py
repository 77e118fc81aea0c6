"""What the explorer shows of each image: whose it is, what was asked for, and what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline_steps.evidence.explorer.page import plain
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tables import read_csv
from pipeline_steps.io.tensors import Features, load_features
from pipeline_steps.metrics.arrays import blocks, feature_rows, unit_rows
from pipeline_steps.naming import REAL, identities_of, natural_key
from pipeline_steps.study.source import Source

BLOCK_ROWS = 512
LIKENESS = ("own", "other", "other_similarity", "photo", "photo_similarity", "other_photo")
POSE = ("pitch", "yaw", "roll")
AUDITED = ("shows", "copy", "stranger")
ASKED: dict[str, Any] = {
    "index": -1,
    "attempt": 0,
    "prompt": "",
}  # and what stands where nothing was asked


@dataclass(frozen=True)
class Files:
    """What there is of one set of images; None where there is nothing.

    Attributes:
        aligned: Manifest of the aligned faces.
        listed: Manifest of the images that were aligned, beside these.
        audit: Table of the audit, a row per image.
        features: Features of the aligned faces by extractor.
    """

    aligned: Path
    listed: Path | None
    audit: Path | None
    features: Mapping[str, Path]

    @property
    def images(self) -> Path:
        """Folder of the images that are shown: as they were made, where they are, else aligned."""
        return (self.listed or self.aligned).parent


def images_of(
    source: Source,
    files: Files,
    photographs: Mapping[str, Features],
    people: Collection[str],
    most: int,
) -> pd.DataFrame:
    """A row for each image of a set, by person and number, those left out with their reason.

    Args:
        source: The set.
        files: What there is of it.
        photographs: Embeddings of the photographs by judge.
        people: The study's identities; no photographs of others are shown.
        most: Rows at most, the first ones; ``total`` says of how many.

    Returns:
        Columns: identity, file, face (files of the image and of the aligned face, missing where
        there is none), ASKED, kept, reason, total, tables (a dict from each manifest and table to
        its row of the image), ``<extractor>/<column>`` with columns LIKENESS of judges, POSE or
        quality, and AUDITED; missing where nothing was measured.

    Raises:
        StepError: a file is missing or broken.
    """
    faces = read_manifest(files.aligned, ("identity", "file", "source_file", "kept", "reason"))
    read = [(files.aligned, faces, faces.index)]
    frame = faces.assign(face=faces["file"])
    if files.listed is not None:
        listed = read_manifest(files.listed, ("identity", "file", "kept", "reason"))
        place = pd.Series(faces.index, index=faces["source_file"]).reindex(listed["file"])
        place = place.where(listed["file"].notna().to_numpy()).fillna(-1).astype(int)
        read = [(files.listed, listed, listed.index), (files.aligned, faces, pd.Index(place))]
        of_face = faces.reindex(place).reset_index(drop=True)
        told = of_face["reason"].notna() & (listed["reason"] == "")
        frame = listed.assign(
            face=of_face["file"],
            kept=listed["kept"] & of_face["kept"].eq(True),
            reason=of_face["reason"].where(told, listed["reason"]),
        )
    if source.name == REAL:
        frame = frame[frame["identity"].isin(people)]
    for column, missing in ASKED.items():
        frame[column] = frame[column].fillna(missing) if column in frame else missing
    person = {name: natural_key(str(name)) for name in frame["identity"].unique()}
    frame = frame.assign(person=frame["identity"].map(person), total=len(frame))
    frame = frame.sort_values(["person", "index", "attempt"], kind="stable").head(most)
    faces_shown = frame["face"]
    parts = [frame[["identity", "file", "face", *ASKED, "kept", "reason", "total"]]]
    for extractor, path in files.features.items():
        table = _measured(load_features(path), photographs.get(extractor), source.name == REAL)
        parts.append(table.reindex(faces_shown).add_prefix(f"{extractor}/"))
    rows = [_rows(path, table, places[frame.index]) for path, table, places in read]
    if files.audit is not None:
        audit = read_csv(files.audit, ("file", *AUDITED))
        place = pd.Series(audit.index, index=audit["file"]).reindex(faces_shown)
        rows.append(_rows(files.audit, audit, pd.Index(place.fillna(-1).astype(int))))
        parts.append(audit.set_index("file").reindex(faces_shown)[list(AUDITED)])
    found = pd.concat([part.reset_index(drop=True) for part in parts], axis=1)
    joined = [
        {key: row for of in each for key, row in of.items()} for each in zip(*rows, strict=True)
    ]
    return found.assign(tables=pd.Series(joined, dtype=object))


def columns_of(frame: pd.DataFrame) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
    """Columns with a value for each image, and the words that some of them count through.

    Args:
        frame: Rows of all sets, see :func:`images_of`, with the number of each one's ``set``; 0 are
            the photographs. An image is known by its place.

    Returns:
        Columns as JSON has them: people, prompts, reasons and what images show as places in the
        lists of words, photographs as places of images; -1 and None where there is none.
    """
    likely = [name for name in frame if str(name).endswith("/other")]
    words = {
        "people": sorted(set(frame[["identity", *likely]].stack().dropna()), key=natural_key),
        "prompts": sorted(set(frame["prompt"])),
        "reasons": sorted(set(frame["reason"])),
        "shows": sorted(set(frame["shows"].dropna())) if "shows" in frame else [],
    }
    faces = frame.loc[(frame["set"] == 0) & frame["face"].notna(), "face"]
    places = pd.Series(faces.index, index=faces)
    columns: dict[str, list[Any]] = {}
    for name, values in frame.drop(columns=["tables", "folder", "face", "total"]).items():
        kind = {"identity": "people", "other": "people", "prompt": "prompts", "reason": "reasons"}
        last = str(name).rpartition("/")[2]
        if last in kind or last == "shows":
            known = words[kind.get(last, last)]
            columns[str(name)] = pd.Categorical(values, categories=known).codes.tolist()
        elif last in ("photo", "other_photo"):
            columns[str(name)] = values.map(places).fillna(-1).astype(int).tolist()
        else:
            columns[str(name)] = [plain(value) for value in values]
    return columns, words


def _rows(path: Path, table: pd.DataFrame, places: pd.Index[int]) -> list[dict[str, Any]]:
    """Rows of a table under its name; none where the place is -1."""
    rows = iter(table.iloc[places[places >= 0]].to_dict("records"))
    return [{path.as_posix(): next(rows)} if place >= 0 else {} for place in places]


def _measured(features: Features, photographs: Features | None, same: bool) -> pd.DataFrame:
    """Numbers of each image by one extractor, by the images' files."""
    if photographs is not None:
        return likeness(features, photographs, same=same)
    names = POSE if features.metadata.get("task") == "pose" else ("quality",)
    values = features.features[:, : len(names)]
    return pd.DataFrame(values, index=features.files, columns=list(names))


def likeness(images: Features, photographs: Features, *, same: bool = False) -> pd.DataFrame:
    """Whom each image resembles, by cosine similarity of embeddings.

    Args:
        images: Embeddings of n images.
        photographs: Embeddings of the photographs by the same recogniser.
        same: The images are the photographs; each is compared with all but itself.

    Returns:
        LIKENESS by the images' files. own: mean similarity to the person's photographs, NaN where
        there are none; other: who else is most similar by that mean, and other_similarity; photo:
        the most similar photograph of anybody, and photo_similarity; other_photo: that of other.
        None and NaN where there is nobody else.
    """
    rows, known = (
        unit_rows(feature_rows(of.features, name="face"), name="face")
        for of in (images, photographs)
    )
    people, owner = np.unique(identities_of(photographs.files), return_inverse=True)
    places = {str(name): place for place, name in enumerate(people)}
    mine = np.asarray([places.get(name, -1) for name in identities_of(images.files)])
    member = np.eye(len(people))[owner]
    files = np.asarray(photographs.files, dtype=object)
    found: dict[str, list[Any]] = {name: [] for name in LIKENESS}
    for block in blocks(len(rows), BLOCK_ROWS):
        each, own = np.arange(block.stop - block.start), mine[block]
        itself = (each, each + block.start)
        similarity = rows[block] @ known.T
        counts = np.tile(member.sum(axis=0), (len(each), 1))
        if same:
            similarity[itself] = 0.0
            counts[each, own] -= 1
        with np.errstate(invalid="ignore"):
            means = similarity @ member / counts
        if same:
            similarity[itself] = -np.inf
        found["own"].append(np.where(own >= 0, means[each, own], np.nan))
        means[each[own >= 0], own[own >= 0]] = -np.inf
        other = means.argmax(axis=1)
        exists = np.isfinite(means[each, other])
        nearest = similarity.argmax(axis=1)
        of_other = np.where(owner == other[:, None], similarity, -np.inf).argmax(axis=1)
        found["other"].append(np.where(exists, people.astype(object)[other], None))
        found["other_similarity"].append(np.where(exists, means[each, other], np.nan))
        found["photo"].append(files[nearest])
        found["photo_similarity"].append(similarity[each, nearest])
        found["other_photo"].append(np.where(exists, files[of_other], None))
    columns = {name: np.concatenate([[], *parts]) for name, parts in found.items()}
    return pd.DataFrame(columns, index=images.files)
