"""A dataset of others as a set of aligned faces, part by part, so that memory stays flat.

Whether its faces stand on the template already is measured on a few of them, not believed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from pipeline_steps.faces.alignment import (
    ARCFACE_TEMPLATE,
    TEMPLATE_SIZE,
    template_transform,
    transform_points,
)
from pipeline_steps.identities.aligning import COLUMNS, Input, Row, align_batch, begin
from pipeline_steps.identities.labelled_sets import (
    NO_LABEL,
    Labelled,
    identity_of_label,
    parts_of,
    sampled,
)
from pipeline_steps.identities.participants import NO_CONSENT, fold, read_withdrawn
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.manifests import join_manifests, write_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import AlignSettings
from pipeline_steps.study.store import Item, Store
from pipeline_steps.study.versions import made_with

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detector

IMAGES_PER_PART = 1024  # what a crash costs, and what is noted together
IMAGES_AT_ONCE = 64
MEASURED = 48  # images
ON_TEMPLATE = 4.0
"""Pixels by which alignment would move a typical face of a set that is aligned, at most; in the
median 1.4 to 2.5 for aligned sets of the embedded world, found anew by the same detector."""


def align_external(
    frozen: Frozen[AlignSettings], source: Path, out: Path, withdrawn: Path | None, device: str
) -> None:
    """Write a dataset's aligned faces and their manifest; a run that was stopped goes on.

    Args:
        frozen: the step's configuration.
        source: the dataset, see `labelled_sets`.
        out: folder to write.
        withdrawn: table of people whose images are not to be read.
        device: where faces are searched.

    Raises:
        StepError: there is no such dataset, it is of another layout, or has no image with a face.
    """
    from pipeline_steps.faces.detection import Detector

    settings, log = frozen.settings, get_logger("align")
    parts = parts_of(source)
    detector = Detector(device, **settings.detector.model_dump())
    rng = numpy_generator(frozen.seed, "align", "external")
    finding = measured(sampled(parts, MEASURED, rng), detector, settings.padding)
    log.info("%s: %s", source, finding["sentence"])
    refused = set(map(fold, read_withdrawn(withdrawn))) if withdrawn else set()
    made_under = key(
        frozen,
        settings=settings.model_dump(mode="json"),
        aligned=finding["aligned"],
        withdrawn=sorted(refused),
    )
    store = Store(out, made_with(frozen))
    every = progress(
        chain.from_iterable(part() for part in parts), description="align", unit="image"
    )
    records = enumerate(every)
    files: list[str] = []
    before: set[str] = set()
    counts: Counter[str] = Counter()
    while chunk := list(islice(records, IMAGES_PER_PART)):
        name = f"parts/{len(files):06d}.parquet"
        known = _known(out / name)
        before |= {str(row["file"]) for row in known.values() if row["kept"]}
        done = store.find(name, made_under) is not None
        rows = list(
            _aligned(
                chunk,
                known if done else {},
                refused,
                None if finding["aligned"] else detector,
                settings.padding,
                out,
            )
        )
        before -= {str(row["file"]) for row in rows if row["kept"]}
        write_manifest(out / name, rows, COLUMNS)
        store.add({name: Item(made_under, {name: sha256_file(out / name)})})
        files.append(name)
        counts.update(row["reason"] for row in rows)
    _forget(store, files, before)
    notes = sorted(store.versions(files))
    told = {"external": json.dumps({"source": source.as_posix()} | finding)}
    join_manifests(out / "manifest.parquet", [out / name for name in files], versions=notes, **told)
    log.info("%d of %d images taken", counts[""], counts.total())
    for reason, count in sorted((counts - Counter({"": counts[""]})).items()):
        log.info("left out: %d x %s", count, reason)
    if not counts[""]:
        raise StepError(f"no face of {source} is left: see the reasons in {out}/manifest.parquet")


def measured(contents: list[bytes], detector: Detector, padding: float) -> Row:
    """Whether faces stand on the template, by some images of a set, and a sentence that says so."""
    images = []
    for content in contents:
        try:
            images.append(read_image(content))
        except BadImage:
            continue
    sides = {image.shape[:2] for image in images}
    if sides != {(TEMPLATE_SIZE, TEMPLATE_SIZE)}:
        what = f"{len(images)} images drawn have other sizes than {TEMPLATE_SIZE}x{TEMPLATE_SIZE}"
        return {"aligned": False, "sampled": len(images), "sentence": f"{what}: aligned here"}
    faces = [face for face in detector.detect(images, padding=padding) if face is not None]
    moved = []
    for face in faces:
        there = transform_points(template_transform(face.landmarks), ARCFACE_TEMPLATE)
        moved.append(float(np.sqrt(((there - ARCFACE_TEMPLATE) ** 2).sum(axis=1).mean())))
    shift = float(np.median(moved)) if moved else float("inf")
    aligned = 2 * len(faces) >= len(images) and shift <= ON_TEMPLATE
    sentence = (
        f"faces found in {len(faces)} of {len(images)} images drawn, "
        f"{shift:.1f} pixels off the template in the median: "
        + ("taken as they are" if aligned else "aligned here")
    )
    told = {"faces": len(faces), "median_shift": shift if moved else None, "sentence": sentence}
    return {"aligned": aligned, "sampled": len(images)} | told


def _known(path: Path) -> dict[tuple[str, str, str], Row]:
    """Rows of a part of an earlier run."""
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError):
        return {}
    return {(row["identity"], row["source_file"], row["source_sha256"]): row for row in rows}


def _aligned(
    chunk: list[tuple[int, Labelled]],
    known: dict[tuple[str, str, str], Row],
    refused: set[str],
    detector: Detector | None,
    padding: float,
    out: Path,
) -> Iterator[Row]:
    """Rows of some records; those of an earlier run whose image is still there are taken over."""
    for start in range(0, len(chunk), IMAGES_AT_ONCE):
        inputs, left_out = [], {}
        for number, record in chunk[start : start + IMAGES_AT_ONCE]:
            identity = identity_of_label(record.label) if record.label else "nobody"
            file = f"{identity}/{number:07d}.png"
            reason = NO_CONSENT if fold(identity) in refused else "" if record.label else NO_LABEL
            inputs.append(Input(identity, record.name, file, record.read))
            if reason:
                left_out[file] = reason
        readable = [one for one in inputs if one.file not in left_out]
        begun, contents = begin(readable)
        rows: dict[str, Row] = {}
        fresh = []
        for one, row, content in zip(readable, begun, contents, strict=True):
            old = known.get((one.identity, one.source_file, row["source_sha256"]))
            if old is not None and old["file"] in (None, one.file) and _is_there(out, old):
                rows[one.file] = old
            else:
                fresh.append((one, row, content))
        if fresh:
            wanted, begun, contents = (list(column) for column in zip(*fresh, strict=True))
            made = align_batch(wanted, begun, contents, detector, padding, out)
            rows |= {one.file: row for one, row in zip(wanted, made, strict=True)}
        for one in inputs:
            bare = dict.fromkeys(COLUMNS) | {"identity": one.identity, "kept": False}
            bare |= {"source_file": one.source_file, "reason": left_out.get(one.file, "")}
            yield rows.get(one.file, bare)


def _is_there(out: Path, row: Row) -> bool:
    path = out / str(row["file"])
    return not row["kept"] or (path.is_file() and sha256_file(path) == row["sha256"])


def _forget(store: Store, files: list[str], before: set[str]) -> None:
    """Remove images and parts that are no longer the dataset's."""
    later = len(files)
    while (path := store.folder / f"parts/{later:06d}.parquet").is_file():
        before |= {str(row["file"]) for row in _known(path).values() if row["kept"]}
        path.unlink()
        later += 1
    if before:
        for name in files:
            kept = pq.read_table(store.folder / name, columns=["file"])["file"].to_pylist()
            before -= set(kept)
    for file in before:
        (store.folder / file).unlink(missing_ok=True)
    store.retain(files)
