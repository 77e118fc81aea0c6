"""InsightFace's `.bin` files: what is read, what is written, and what is refused unexecuted."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline_steps.recognition.benchmarks import read_bin, write_bin
from pipeline_steps.runtime.errors import StepError
from tests.recognition.bin_files import encode, pictures, put

SAME = [True, False, True]


def insightface_load_bin(path: Path) -> tuple[np.ndarray, list[bool]]:
    """InsightFace's reader convention: plain unpickling, imdecode to RGB (here by OpenCV)."""
    with path.open("rb") as stream:
        bins, same = pickle.load(stream, encoding="bytes")
    decoded = [cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR) for b in bins]
    return np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in decoded]), same


def test_what_we_write_insightface_reads_and_we_read_back(tmp_path: Path) -> None:
    images = pictures()
    write_bin(tmp_path / "set.bin", images, SAME)
    theirs, flags = insightface_load_bin(tmp_path / "set.bin")
    np.testing.assert_array_equal(theirs, images)
    assert flags == SAME
    assert all(type(flag) is bool for flag in flags)
    ours, same = read_bin(tmp_path / "set.bin")
    np.testing.assert_array_equal(ours, images)
    assert ours.dtype == np.uint8
    assert same.dtype == bool
    assert same.tolist() == SAME


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        write_bin(tmp_path / name, pictures(), np.array(SAME))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "as_item",
    [bytes, bytearray, lambda b: np.frombuffer(b, np.uint8).copy()],
    ids=["bytes", "bytearray", "uint8 array"],
)
def test_every_protocol_and_kind_of_image_item(
    tmp_path: Path, protocol: int, as_item: Callable[[bytes], Any]
) -> None:
    images = pictures()
    path = put(tmp_path, ([as_item(encode(image)) for image in images], SAME), protocol)
    read, same = read_bin(path)
    np.testing.assert_array_equal(read, images)
    assert same.tolist() == SAME


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "flags",
    [[np.bool_(f) for f in SAME], np.array(SAME), [1, 0, 1], np.array([1, 0, 1]), tuple(SAME)],
    ids=["numpy booleans", "boolean array", "numbers", "integer array", "tuple"],
)
def test_every_kind_of_flags(tmp_path: Path, protocol: int, flags: object) -> None:
    path = put(tmp_path, ([encode(image) for image in pictures()], flags), protocol)
    assert read_bin(path)[1].tolist() == SAME


def test_jpegs_as_python_2_wrote_them(tmp_path: Path) -> None:
    """Protocol 2 of Python 2: str pickled by BINSTRING, memoised, then the list of booleans."""
    images = pictures(2)
    body = b"\x80\x02]q\x00("
    for i, image in enumerate(images):
        content = encode(image, "JPEG")
        body += b"T" + struct.pack("<i", len(content)) + content + b"q" + bytes([i + 1])
    path = tmp_path / "old.bin"
    path.write_bytes(body + b"e]q\x03\x88a\x86q\x04.")
    read, same = read_bin(path)
    assert same.tolist() == [True]
    # JPEG is lossy; the tolerance is far below what swapped channels would give.
    assert np.abs(read.astype(int) - images.astype(int)).mean() < 3


@pytest.mark.parametrize("raw", [False, True], ids=["escaped", "latin-1"])
def test_protocol_0_as_python_2_wrote_it(tmp_path: Path, raw: bool) -> None:
    """Lines of text: str as repr() writes it, or with its bytes above 127 as they are."""
    images = pictures(4)

    def text(content: bytes) -> bytes:
        if not raw:
            return repr(content)[1:].encode()
        for plain, written in ((b"\\", b"\\\\"), (b"'", b"\\'"), (b"\n", b"\\n")):
            content = content.replace(plain, written)
        return b"'" + content + b"'"

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\n"
        b"Rp5\n(I1\n(I2\ntp6\ncnumpy\ndtype\np7\n(S'b1'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'|'\np11\n"
        b"NNNI-1\nI-1\nI0\ntp12\nbI00\nS'\\x01\\x00'\np13\ntp14\nb"
    )
    shown = b"".join(b"S" + text(encode(image)) + b"\na" for image in images)
    for flags in (b"(lp20\nI01\naI00\na", array):
        path = tmp_path / "oldest.bin"
        path.write_bytes(b"((lp21\n" + shown + flags + b"tp22\n.")
        read, same = read_bin(path)
        np.testing.assert_array_equal(read, images)
        assert same.tolist() == [True, False]


def test_grey_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    grey = np.tile(np.arange(112, dtype=np.uint8), (112, 1))
    cmyk = io.BytesIO()
    Image.new("CMYK", (112, 112), (0, 255, 255, 0)).save(cmyk, "JPEG")
    path = put(tmp_path, ([encode(grey), cmyk.getvalue()], [False]))
    images, _ = read_bin(path)
    np.testing.assert_array_equal(images[0], np.repeat(grey[..., None], 3, axis=2))
    red = images[1].reshape(-1, 3).mean(0)
    assert red[0] > 200
    assert red[1:].max() < 60


def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path: Path) -> None:
    images = [np.frombuffer(encode(image), np.uint8).copy() for image in pictures(2)]
    whole = pickle.dumps((images, np.array([True])), protocol=2)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.bin"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        # Pickle syntax stands at both ends, image content between.
        for at in rng.choice([*range(200), *range(len(whole) - 200, len(whole))], 2):
            damaged[at] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            read_bin(path)
        except StepError:
            refused += 1
    assert refused > 200


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(([encode(image) for image in pictures(2)], [True]), protocol=2)
    for length in {*range(0, 40), *range(40, len(whole), 97), len(whole) - 1}:
        path = tmp_path / "short.bin"
        path.write_bytes(whole[:length])
        with pytest.raises(StepError, match="was refused"):
            read_bin(path)


def test_wrong_contents_are_named(tmp_path: Path) -> None:
    good = encode(pictures(1)[0])
    small = encode(pictures(1, size=111)[0])
    cases: list[tuple[object, str]] = [
        (([good, small], [True]), "image 1 is 111 x 111 pixels"),
        (([good, b"GIF89a" + bytes(40)], [True]), "image 1 is no JPEG"),
        (([good, good[: len(good) // 2]], [True]), "image 1 cannot be decoded"),
        (([good, good, good], [True]), "3 images for 1 pairs"),
        (([good, good], [7]), "flags holds a number"),
        ((["path.png", good], [True]), "images holds text"),
        (([], []), "0 pairs"),
        ([good, good], "flags"),
        ({"bins": [good]}, "opcode EMPTY_DICT"),
    ]
    for content, message in cases:
        with pytest.raises(StepError, match="was refused") as refusal:
            read_bin(put(tmp_path, content))
        if message != "flags":
            assert message in str(refusal.value)


def test_an_enormous_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    """A PNG whose header promises 50 000 x 50 000 pixels must not be decoded."""
    bomb = bytearray(encode(pictures(1)[0]))
    header = struct.pack(">II", 50_000, 50_000)
    bomb[16:24] = header
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(StepError, match="was refused"):
        read_bin(put(tmp_path, ([bytes(bomb), bytes(bomb)], [True])))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"cannot read the benchmark .*absent\.bin"):
        read_bin(tmp_path / "absent.bin")


def test_writing_checks_shape_and_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        write_bin(tmp_path / "x.bin", pictures().astype(np.float32), SAME)
    with pytest.raises(ValueError, match="expected uint8"):
        write_bin(tmp_path / "x.bin", pictures(4), SAME)
