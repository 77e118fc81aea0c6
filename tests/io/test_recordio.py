"""RecordIO: what is written follows MXNet's format, and what is broken is said in a sentence."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.images import BadImage
from pipeline_steps.io.recordio import (
    MAGIC,
    Writer,
    images_of,
    read_record,
    unpack,
    write_record,
)
from pipeline_steps.runtime.errors import StepError

IMAGES = 1000


def insightface(folder: Path) -> list[tuple[int, bytes]]:
    """Label and bytes of each image, read as InsightFace's MXFaceDataset does, without MXNet."""
    places = {}
    for line in (folder / "train.idx").read_text().splitlines():
        key, place = line.split("\t")
        places[int(key)] = int(place)
    data = (folder / "train.rec").read_bytes()

    def record(key: int) -> bytes:
        place, found = places[key], b""
        while True:
            magic, word = struct.unpack_from("<II", data, place)
            assert magic == 0xCED7230A
            flag, length = word >> 29, word & 0x1FFFFFFF
            found += data[place + 8 : place + 8 + length]
            if flag in (0, 3):
                return found
            found += b"\x0a\x23\xd7\xce"
            place += 8 + (length + 3) // 4 * 4

    def unpacked(content: bytes) -> tuple[float | tuple[float, ...], bytes]:
        flag, label, _, _ = struct.unpack("IfQQ", content[:24])
        if flag == 0:
            return label, content[24:]
        return struct.unpack(f"{flag}f", content[24 : 24 + 4 * flag]), content[24 + 4 * flag :]

    header, _ = unpacked(record(0))
    assert isinstance(header, tuple)
    images = [unpacked(record(key)) for key in range(1, int(header[0]))]
    for key in range(int(header[0]), int(header[1])):  # whose images lie where
        span, _ = unpacked(record(key))
        assert isinstance(span, tuple)
        owned = {label for label, _ in images[int(span[0]) - 1 : int(span[1]) - 1]}
        assert owned == {float(key - int(header[0]))}
    return [(int(label), content) for label, content in images if isinstance(label, float)]


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, list[tuple[str, bytes]]]:
    """1000 records of 100 people, some with the magic number inside."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(IMAGES):
        content = rng.bytes(int(rng.integers(1, 200)))
        if number % 7 == 0:
            content = MAGIC * (number % 3) + content + MAGIC + bytes(number % 5) + MAGIC
        made.append((f"ID_{number // 10}", content))
    with Writer(tmp_path, IMAGES, dict.fromkeys(name for name, _ in made)) as writer:
        keys = [writer.add(*one) for one in made]
    assert keys == list(range(1, IMAGES + 1))
    return tmp_path, made


def test_insightfaces_reader_and_ours_get_back_what_was_written(
    packed: tuple[Path, list[tuple[str, bytes]]],
) -> None:
    folder, made = packed
    assert insightface(folder) == [(int(name[3:]), content) for name, content in made]
    assert (folder / "property").read_text() == "100,112,112\n"
    for _ in range(2):
        with (folder / "train.rec").open("rb") as stream:
            rows = images_of(folder / "train.rec")
            ours = [unpack(read_record(stream, place)) for place in rows[:, 1].tolist()]
        assert [(f"ID_{one.labels[0]:g}", one.content) for one in ours] == made
        (folder / "train.idx").unlink(missing_ok=True)  # then it is gone through


def test_several_labels_are_read_and_the_first_counts() -> None:
    record = struct.pack("<IfQQ", 3, 0, 9, 0) + struct.pack("<3f", 7, 0.5, 1) + b"image"
    stream = io.BytesIO()
    write_record(stream, record)
    found = unpack(read_record(stream, 0))
    assert found.labels.tolist() == [7, 0.5, 1] and found.content == b"image"


def test_what_is_broken_is_said(packed: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path = packed[0] / "train.rec"
    content = path.read_bytes()
    places = images_of(path)[:, 1].tolist()
    with pytest.raises(BadImage, match="truncated"):
        read_record(io.BytesIO(content[: places[-1] + 12]), places[-1])
    with pytest.raises(BadImage, match="no record where the index says"):
        read_record(io.BytesIO(content), places[0] + 4)
    with pytest.raises(BadImage, match="no image header"):
        unpack(b"too short")
    with pytest.raises(BadImage, match="no image header"):
        unpack(struct.pack("<IfQQ", 2**30, 0, 0, 0))
    path.write_bytes(b"PK\x03\x04" + content[4:])
    with pytest.raises(StepError, match="begins with another magic number"):
        images_of(path)
    foreign = struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<2f", 5e6, 6e6)
    with path.open("wb") as stream:
        write_record(stream, foreign)
    (packed[0] / "train.idx").write_text("0\t0\n")
    with pytest.raises(StepError, match="its images end at record 5e\\+06, but it has 1 records"):
        images_of(path)
    (packed[0] / "train.idx").write_text("zero\n")
    with pytest.raises(StepError, match=r"train\.idx is no index of records"):
        images_of(path)
