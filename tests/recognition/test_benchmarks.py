"""InsightFace's `.bin` files: what is read, what is written, and what is refused unexecuted."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline_steps.files.errors import StepError
from pipeline_steps.recognition import binary_pairs
from pipeline_steps.recognition.benchmarks import read_bin, write_bin

SAME = [True, False, True]


def pictures(n: int = 6, size: int = 112) -> np.ndarray:
    """Smooth colour pictures whose channels differ, so that swapped colours show."""
    ramp = np.linspace(0, 255, size)
    pictures = np.zeros((n, size, size, 3))
    for i in range(n):
        pictures[i, ..., 0] = ramp[None, :]
        pictures[i, ..., 1] = ramp[:, None] * i / n
        pictures[i, ..., 2] = 20 * i
    return pictures.astype(np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def put(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "set.bin"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


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


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
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


@pytest.mark.parametrize("protocol", [2, 5])
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


class Reduces:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def hostile_contents(marker: Path) -> dict[str, object]:
    image = encode(pictures(1)[0])
    array = np.frombuffer(image, np.uint8).copy()
    return {
        "os.system": Reduces(os.system, f"touch {marker}"),
        "os.system as image": ([Reduces(os.system, f"touch {marker}"), image], [True]),
        "os.system as flag": ([image, image], [Reduces(os.system, f"touch {marker}")]),
        "eval": ([image, image], [Reduces(eval, f"open({str(marker)!r}, 'w')")]),
        "getattr": ([image, image], [Reduces(getattr, Path, "home")]),
        "numpy class": ([image, image], [Reduces(np.load, str(marker))]),
        "codec": ([Reduces(__import__("codecs").encode, "abc", "rot13"), image], [True]),
        "object array": ([np.array([image, None], dtype=object), image], [True]),
        "float array": ([array.astype(float), image], [True]),
        "own class": ([image, image], [Path(".")]),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("case", sorted(hostile_contents(Path("marker"))))
def test_anything_but_images_and_flags_is_refused_and_not_executed(
    tmp_path: Path, case: str, protocol: int
) -> None:
    marker = tmp_path / "executed"
    path = put(tmp_path, hostile_contents(marker)[case], protocol)
    with pytest.raises(StepError, match="was refused") as refusal:
        read_bin(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()


RAW_HOSTILE = {
    "protocol 0 call": b"cos\nsystem\n(S'touch executed'\ntR.",
    "instance": b"(S'touch executed'\nios\nsystem\n.",
    "persistent object": b"\x80\x02U\x01aQ.",
    "extension registry": b"\x80\x02\x82\x01.",
    "new object": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)\x81.",
    "patched constructor": b"\x80\x02cnumpy\nndarray\n}b.",
    "array with a lying shape": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR\x89U\x01atb\x85q\x01\x88\x85\x86."
    ),
    "length beyond the file": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    "memo bomb": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "list into itself": b"\x80\x02]q\x00h\x00a]\x86.",
    "mark as value": b"\x80\x02(.",
    "append without a list": b"\x80\x02Na.",
    "tuple without items": b"\x80\x02\x86.",
    "empty": b"",
    "text": b"this is no pickle at all",
    "a picture": encode(pictures(1)[0]),
}


@pytest.mark.parametrize("case", sorted(RAW_HOSTILE))
def test_malformed_pickles_are_refused_in_one_sentence(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.bin"
    path.write_bytes(RAW_HOSTILE[case])
    with pytest.raises(StepError, match="was refused"):
        read_bin(path)
    assert not (tmp_path / "executed").exists()


def memo_put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def memo_get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that ask for much memory or time."""
    image = encode(pictures(1)[0])
    start = b"\x80\x04"
    shown = b"B" + struct.pack("<I", len(image)) + image + memo_put(0)
    encode_call = memo_get(1) + memo_get(2) + memo_get(3) + b"\x86R"
    prepared = b"c_codecs\nencode\n" + memo_put(1) + text_op("a" * 100_000) + memo_put(2)
    prepared += text_op("latin1") + memo_put(3)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + text_op("u1") + b"K\x00K\x01\x87R"
    flags = b"B" + struct.pack("<I", 3_000_000) + b"\x01" * 3_000_000
    sizes = b"(" + b"K\x01" * 50_000 + b"t"
    return {
        "one picture 100 000 times": (
            start + b"(" + shown + memo_get(0) * 99_999 + b"l(" + b"\x88" * 50_000 + b"l\x86.",
            "50000 pairs",
        ),
        "one text encoded 1 000 times": (
            start + b"(" + prepared + encode_call * 1000 + b"l(\x88l\x86.",
            "beyond its own size",
        ),
        "an array of 3 000 000 flags": (
            start
            + b"]"
            + array
            + b"(K\x01J"
            + struct.pack("<i", 3_000_000)
            + b"\x85"
            + dtype
            + b"\x89"
            + flags
            + b"tb\x86.",
            "3000000 pairs",
        ),
        "an array of 50 000 dimensions": (
            start + b"]" + array + b"(K\x01" + sizes + dtype + b"\x89C\x01atb\x86.",
            "50000 dimensions",
        ),
        "tuples in tuples": (start + b")" + b"\x85" * 100_000 + b".", "not a pair"),
        "a type code of a megabyte": (
            start + b"cnumpy\ndtype\n" + text_op("u1" * 500_000) + b"\x85R.",
            "not of plain integers",
        ),
    }


@pytest.mark.parametrize("case", sorted(bombs()))
def test_bombs_are_refused_in_little_memory(tmp_path: Path, case: str) -> None:
    content, message = bombs()[case]
    path = tmp_path / "bomb.bin"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(StepError, match=f"was refused: .*{message}"):
            read_bin(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20


def test_endless_programs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_pairs, "MAX_OPCODES", 1000)
    path = tmp_path / "endless.bin"
    path.write_bytes(b"\x80\x04" + b"N" * 1000 + b".")
    with pytest.raises(StepError, match="more than 1000 pickle opcodes"):
        read_bin(path)


def test_a_picture_with_a_bomb_in_its_metadata_is_refused(tmp_path: Path) -> None:
    whole = encode(pictures(1)[0])
    profile = b"bomb\0\0" + zlib.compress(bytes(200 * 2**20), 9)
    body = b"iCCP" + profile
    chunk = struct.pack(">I", len(profile)) + body + struct.pack(">I", zlib.crc32(body))
    header = 8 + 25  # signature and IHDR
    path = put(tmp_path, ([whole, whole[:header] + chunk + whole[header:]], [True]))
    with pytest.raises(StepError, match="was refused: image 1"):
        read_bin(path)


def test_random_programs_of_the_pickle_machine_are_read_or_refused(tmp_path: Path) -> None:
    """Opcodes in any order, with arguments that fit them, names of functions among them."""
    rng = np.random.default_rng(0)
    image = encode(pictures(1)[0])
    words = [
        *(bytes([code]) for code in b"()]14NtlaesbRR\x85\x86\x87\x88\x89\x94\x93"),
        *(b"h" + bytes([k]) for k in range(3)),
        *(b"q" + bytes([k]) for k in range(3)),
        b"B" + struct.pack("<I", len(image)) + image,
        *(text_op(text) for text in ("latin1", "u1", "os", "system", f"touch {tmp_path}/executed")),
        b"cos\nsystem\n",
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"c_codecs\nencode\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
    ]
    path = tmp_path / "random.bin"
    for _ in range(600):
        chosen = rng.integers(len(words), size=int(rng.integers(1, 40)))
        path.write_bytes(b"\x80\x04" + b"".join(words[i] for i in chosen) + b".")
        with pytest.raises(StepError, match="was refused"):
            read_bin(path)
    assert not (tmp_path / "executed").exists()


def test_a_lying_array_shape_is_what_gets_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(RAW_HOSTILE["array with a lying shape"])
    with pytest.raises(StepError, match="array of an impossible shape"):
        read_bin(path)


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
