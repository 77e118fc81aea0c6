"""Datasets that others have made: images, each with a label that says whose it is.

A folder per person, a zip or tar archive of such folders, a WebDataset (`.cls` or `.json` beside
each image), Parquet in Hugging Face's layout of images, or InsightFace's `.rec`. They are read part
by part, so that memory stays flat; only the names inside one zip or tar archive are read at once.
What is broken is an image with a reason, as in every manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_steps.identities.containers import Entry, contents_of
from pipeline_steps.identities.photographs import IMAGE_SUFFIXES, is_junk
from pipeline_steps.io.images import BadImage
from pipeline_steps.io.recordio import images_of, read_record, unpack
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import SHELVES

LABELS = ("identity", "label", "class", "cls", "subject", "person", "subject_id", "person_id")
"""Names of a column, or a field of a .json, that says whose an image is, the first one counts."""
IMAGES = ("image", "img", "face", "jpg", "jpeg", "png", "webp")
RECORDS_AT_ONCE = 1024
LONGEST_LABEL = 100
NO_LABEL = "nobody's: neither a label nor a folder of its own"


class Labelled(NamedTuple):
    """One image: its name in the dataset, whose it is ("": nobody's), and what reads its bytes,
    which raises BadImage where they cannot be had."""

    name: str
    label: str
    read: Callable[[], bytes]


Part = Callable[[], Iterator[Labelled]]


def parts_of(source: Path) -> list[Part]:
    """A dataset's parts, in their order, each to be read when it is its turn.

    Raises:
        StepError: there is none, it is of another layout, or holds no image.
    """
    if not source.exists():
        raise StepError(f"external set {source} does not exist: correct the path, or fetch it")
    files = [source] if source.is_file() else []
    by_kind: dict[str, list[Path]] = {".rec": files, ".parquet": files, ".tar": files}
    if source.is_dir():
        by_kind = {kind: _sorted(source.rglob(f"*{kind}")) for kind in by_kind}
    readers: dict[str, Callable[[Path], list[Part]]] = {
        ".rec": _of_records,
        ".parquet": _of_parquet,
        ".tar": _of_archive,
        ".zip": _of_archive,
    }
    for kind, found in (by_kind | {".zip": files}).items():
        chosen = [file for file in found if file.suffix.lower() == kind]
        parts = [part for file in chosen for part in readers[kind](file)]
        if parts:
            break
    else:
        parts = _of_folder(source) if source.is_dir() else []
    if not parts:
        raise StepError(
            f"external set {source} holds no image: expected a folder for each person, a .zip, .tar"
            " or WebDataset, Parquet with a column of images, or InsightFace's .rec"
        )
    return parts


def sampled(parts: Sequence[Part], count: int, rng: np.random.Generator) -> list[bytes]:
    """About so many images drawn from the parts, those that can be read."""
    chosen = rng.choice(len(parts), min(count, len(parts)), replace=False)
    contents = []
    for part in (parts[index] for index in sorted(chosen)):
        records = [one for _, one in zip(range(RECORDS_AT_ONCE), part(), strict=False)]
        size = min(len(records), -(-count // len(chosen)))
        for index in sorted(rng.choice(len(records), size, replace=False)) if size else ():
            try:
                contents.append(records[index].read())
            except BadImage:
                continue
    return contents


def identity_of_label(label: str) -> str:
    """A label as the name of a folder; names of other labels stay apart from it.

    What is safe everywhere stays as it is, so that `ID_7` is the study's ID_7.
    """
    safe = re.sub(r"[^\w-]", "_", label, flags=re.ASCII)[:LONGEST_LABEL]
    if safe == label and not safe.startswith("-") and safe not in SHELVES:
        return safe
    return f"{safe}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(path.as_posix()))


def _of_folder(root: Path) -> list[Part]:
    """A part for each folder with images."""
    names = {
        folder: images
        for folder, _, files in os.walk(root)
        if (images := any(map(_is_image, files)))
    }
    folders = _sorted(map(Path, names))
    labels = _labels([folder.relative_to(root).as_posix() for folder in folders])

    def read(folder: Path, label: str) -> Iterator[Labelled]:
        files = _sorted(file for file in folder.iterdir() if _is_image(file.name))
        for file in files:
            name = file.relative_to(root).as_posix()
            yield Labelled(name, label, partial(_read_file, file, root))

    return [partial(read, *pair) for pair in zip(folders, labels, strict=True)]


def _read_file(file: Path, root: Path) -> bytes:
    if not file.resolve().is_relative_to(root.resolve()):
        raise BadImage("link out of the source", str(file))
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadImage("unreadable", str(error)) from error


def _labels(folders: Sequence[str]) -> list[str]:
    """What folders are called, their whole paths where two people would get one name."""
    names = [PurePosixPath(folder).name for folder in folders]
    unique = len(set(names)) == len(names)
    return names if unique else [folder.replace("/", "-") for folder in folders]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_junk(PurePosixPath(name))


def _of_archive(path: Path) -> list[Part]:
    def read() -> Iterator[Labelled]:
        contents = contents_of(path)
        members: dict[str, dict[str, Entry]] = {}  # by WebDataset's key, then by ending
        for entry in contents.entries:
            folder, _, name = entry.path.replace("\\", "/").rpartition("/")
            stem, _, ending = name.partition(".")
            if not entry.is_folder and not is_junk(PurePosixPath(entry.path)):
                members.setdefault(f"{folder}/{stem}", {})[ending.lower()] = entry
        folders = list(dict.fromkeys(key.rpartition("/")[0] for key in members))
        owners = dict(zip(folders, _labels(folders), strict=True))
        for key, files in members.items():
            label = _label_beside(files) or owners[key.rpartition("/")[0]]
            images = [one for ending, one in files.items() if _is_image(f"x.{ending}")]
            for entry in images:
                yield Labelled(f"{path.name}/{entry.path}", label, entry.read)
            if not images and files.keys() & {"cls", "json"}:
                yield Labelled(f"{path.name}{key}", label, _failing("no image beside its label"))
        if contents.broken:
            yield Labelled(path.name, "", _failing("truncated archive", contents.broken))

    return [read]


def _label_beside(files: dict[str, Entry]) -> str:
    """What a WebDataset's .cls or .json says, "" where it says nothing."""
    try:
        if "cls" in files:
            return files["cls"].read().decode().strip()
        told = json.loads(files["json"].read()) if "json" in files else {}
    except (BadImage, ValueError):
        return ""
    return next((str(told[key]) for key in LABELS if key in told), "")


def _failing(reason: str, detail: str = "") -> Callable[[], bytes]:
    def read() -> bytes:
        raise BadImage(reason, detail)

    return read


def _of_parquet(path: Path) -> list[Part]:
    try:
        with pq.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, file.num_row_groups
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{path} is no whole Parquet file ({error}): fetch it again") from error
    features = _features(schema)
    kinds = {name: kind.get("_type") for name, kind in features.items() if isinstance(kind, dict)}
    image = _column(schema, [n for n, kind in kinds.items() if kind == "Image"], IMAGES)
    label = _column(schema, [n for n, kind in kinds.items() if kind == "ClassLabel"], LABELS)
    if image is None:
        return []  # a table beside images
    if label is None:
        raise StepError(
            f"{path} has the columns {', '.join(schema.names)}, but none that says whose the "
            f"images are: call it {LABELS[0]} or {LABELS[1]}"
        )
    names = (features.get(label) or {}).get("names") or []

    def read(group: int) -> Iterator[Labelled]:
        row = 0
        try:
            with pq.ParquetFile(path, buffer_size=2**20) as file:
                batches = file.iter_batches(64, [group], [image, label])
                for batch in batches:
                    owners, images = batch[label].to_pylist(), batch[image].to_pylist()
                    for owner, content in zip(owners, images, strict=True):
                        where = content.get("path") if isinstance(content, dict) else None
                        whose = "" if owner is None else str(names[owner] if names else owner)
                        name = where or f"row {row}"
                        yield Labelled(f"{path.name}:{group}/{name}", whose, _content(content))
                        row += 1
        except (pa.ArrowException, OSError) as error:
            reading = _failing("unreadable", str(error))
            yield Labelled(f"{path.name}:{group} from row {row}", "", reading)

    return [partial(read, group) for group in range(groups)]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the library `datasets` noted of the columns."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _column(schema: pa.Schema, noted: Sequence[str], usual: Sequence[str]) -> str | None:
    return next((name for name in (*noted, *usual) if name in schema.names), None)


def _content(value: Any) -> Callable[[], bytes]:
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return lambda: content
    return _failing("no image in the file", "only a path" if isinstance(value, dict) else "")


def _of_records(path: Path) -> list[Part]:
    index, listed = images_of(path), path.with_name("labels.txt")
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []

    def read(rows: NDArray[np.int64]) -> Iterator[Labelled]:
        with path.open("rb") as stream:
            for key, place in rows.tolist():
                label, reading = "", _failing("unreadable")
                try:
                    labels, content = unpack(read_record(stream, place))
                    number = int(labels[0])
                    label = names[number] if 0 <= number < len(names) else str(number)
                    reading = _content(content)
                except BadImage as error:
                    reading = _failing(error.reason, str(error))
                except (OSError, ValueError, OverflowError) as error:
                    reading = _failing("unreadable", str(error))
                yield Labelled(f"{path.name}:{key}", label, reading)

    starts = range(0, len(index), RECORDS_AT_ONCE)
    return [partial(read, index[start : start + RECORDS_AT_ONCE]) for start in starts]
