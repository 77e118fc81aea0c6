"""RecordIO files of images, `.rec` with `.idx`, as InsightFace reads and MXNet wrote them.

No MXNet and no pickle. A record is its magic number, a word of how it goes on (upper 3 bits) and
its length (lower 29), the content, and zeros to the next multiple of four. Content that holds the
magic number at a multiple of four is cut there, without it. An image's content begins with a header
`IfQQ`: how many labels follow (0: none), a label, two numbers. Record 0 says where the images end,
and which records behind them name the range of each person's images.

Source: dmlc-core, include/dmlc/recordio.h; MXNet, python/mxnet/recordio.py; InsightFace,
recognition/arcface_torch/dataset.py (MXFaceDataset).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.io.images import BadImage
from pipeline_steps.runtime.errors import StepError

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)
_HEAD, _LABELLED = struct.Struct("<4sI"), struct.Struct("<IfQQ")
_LENGTH = 2**29 - 1


class Labelled(NamedTuple):
    """What a record holds: its labels, of which the first says who it is, and an image's bytes."""

    labels: NDArray[np.float32]
    content: bytes


def read_record(stream: BinaryIO, place: int) -> bytes:
    """The content of the record that begins at a place.

    Raises:
        BadImage: no record begins there, or the file ends before the record does.
    """
    stream.seek(place)
    parts: list[bytes] = []
    while True:
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise BadImage("truncated", "the file ends before the record does")
        magic, word = _HEAD.unpack(head)
        how, length = word >> 29, word & _LENGTH
        if magic != MAGIC or (how in (WHOLE, FIRST)) != (not parts) or how > LAST:
            raise BadImage("no record where the index says", f"at byte {place}")
        parts.append(stream.read(length))
        if len(parts[-1]) < length:
            raise BadImage("truncated", f"{len(parts[-1])} of {length} bytes")
        stream.seek(-length % 4, os.SEEK_CUR)
        if how in (WHOLE, LAST):
            return MAGIC.join(parts)


def unpack(record: bytes) -> Labelled:
    """Labels and image of a record.

    Raises:
        BadImage: it has another header.
    """
    if len(record) < _LABELLED.size:
        raise BadImage("no image header", f"{len(record)} bytes")
    count, label, *_ = _LABELLED.unpack_from(record)
    if not count:
        return Labelled(np.array([label], np.float32), record[_LABELLED.size :])
    end = _LABELLED.size + 4 * count
    if end > len(record):
        raise BadImage("no image header", f"{count} labels in {len(record)} bytes")
    return Labelled(np.frombuffer(record, "<f4", count, _LABELLED.size), record[end:])


def index_of(path: Path) -> NDArray[np.int64]:
    """Key and place of each record [n, 2], by the index beside the file, or by going through it.

    Raises:
        StepError: it is no such file, or its index cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise StepError(f"{path} is no RecordIO file: it begins with another magic number")
        index = path.with_suffix(".idx")
        if not index.is_file():
            return np.array(list(enumerate(_places(stream))), np.int64)
    try:
        rows = np.loadtxt(index, dtype=np.int64, ndmin=2)
        return rows[np.argsort(rows[:, 0], kind="stable"), :2]
    except (ValueError, IndexError) as error:
        raise StepError(f"{index} is no index of records ({error}): delete or replace it") from None


def _places(stream: BinaryIO) -> Iterator[int]:
    place = stream.seek(0)
    while len(head := stream.read(_HEAD.size)) == _HEAD.size and head.startswith(MAGIC):
        word = _HEAD.unpack(head)[1]
        if word >> 29 in (WHOLE, FIRST):
            yield place
        length = word & _LENGTH
        place = stream.seek(length + -length % 4, os.SEEK_CUR)


def images_of(path: Path) -> NDArray[np.int64]:
    """Key and place of each record that is an image [n, 2], by what record 0 says.

    Raises:
        StepError: as :func:`index_of`, or record 0 is unreadable, or speaks of what is not there.
    """
    index = index_of(path)
    with path.open("rb") as stream:
        try:
            labels, content = unpack(read_record(stream, int(index[0, 1])))
        except BadImage as error:
            raise StepError(f"the first record of {path} cannot be read: {error}") from error
    if content or len(labels) < 2:  # an image: there is no record about all others
        return index
    if not 1 <= labels[0] <= index[-1, 0] + 1:
        raise StepError(
            f"the first record of {path} says that its images end at record {labels[0]:g}, but it "
            f"has {len(index)} records: pack the dataset anew"
        )
    return index[(index[:, 0] > index[0, 0]) & (index[:, 0] < labels[0])]


class Writer:
    """Writes images of people, person after person, with index and InsightFace's `property`.

    Args:
        folder: gets train.rec, train.idx, property and labels.txt, in which line k + 1 names the
            person of label k.
        images: how many there will be.
        people: their names, in the order in which their images come.
    """

    def __init__(self, folder: Path, images: int, people: Iterable[str]) -> None:
        self.folder, self.people = folder, list(people)
        self.last = images
        self.firsts: list[int] = []
        self.key = 0
        self.stream = (folder / "train.rec").open("wb")
        self.index = (folder / "train.idx").open("w", encoding="ascii")
        self._write([images + 1, images + 1 + len(self.people)])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, person: str, image: bytes) -> int:
        """Write the next image; its record's key."""
        label = self.people.index(person, max(0, len(self.firsts) - 1))
        if label == len(self.firsts):
            self.firsts.append(self.key)
        self._write([label], image)
        return self.key - 1

    def close(self) -> None:
        """Write what stands behind the images."""
        for first, end in pairwise([*self.firsts, self.last + 1]):
            self._write([first, end])
        self.stream.close()
        self.index.close()
        (self.folder / "property").write_text(f"{len(self.people)},112,112\n", encoding="ascii")
        names = "".join(f"{name}\n" for name in self.people)
        (self.folder / "labels.txt").write_text(names, encoding="utf-8")

    def _write(self, labels: list[int], image: bytes = b"") -> None:
        self.index.write(f"{self.key}\t{self.stream.tell()}\n")
        if image:
            header = _LABELLED.pack(0, labels[0], self.key, 0)
        else:
            header = _LABELLED.pack(len(labels), 0, self.key, 0) + np.array(labels, "<f4").tobytes()
        write_record(self.stream, header + image)
        self.key += 1


def write_record(stream: BinaryIO, content: bytes) -> None:
    """Write one record, cut where its content has the magic number."""
    words = np.frombuffer(content, "<u4", len(content) // 4)
    cuts = np.flatnonzero(words == int.from_bytes(MAGIC, "little")) * 4
    starts, ends = [0, *(cuts + 4).tolist()], [*cuts.tolist(), len(content)]
    kinds = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if len(cuts) else [WHOLE]
    for how, start, end in zip(kinds, starts, ends, strict=True):
        stream.write(_HEAD.pack(MAGIC, how << 29 | end - start))
        stream.write(content[start:end] + bytes(-(end - start) % 4))
