"""Files that pretend to be benchmarks: refused, unexecuted, and in little memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_steps.recognition import benchmarks as binary_pairs
from pipeline_steps.recognition.benchmarks import read_bin
from pipeline_steps.runtime.errors import StepError
from tests.recognition.bin_files import encode, pictures, put


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
    "array with a lying buffer": (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(C\x03abccnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
        b"K\x04\x85X\x01\x00\x00\x00CtR\x85\x85\x86."
    ),
    "call of what is no function": b"\x80\x02U\x01a)R.",
    "state of a constructor": b"\x80\x02cnumpy\nndarray\nNN\x86b.",
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
    start, huge = b"\x80\x04", struct.pack("<Q", 2**62)
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
        **{
            f"{name} of 2**62 bytes": (
                start + code + huge + b"abc.",
                "truncated",
            )
            for name, code in (("bytes", b"\x8e"), ("bytearray", b"\x96"), ("text", b"\x8d"))
        },
        "a frame of 2**62 bytes": (start + b"\x95" + huge + b"N.", "truncated"),
        "a number of 2**31 bytes": (start + b"\x8b\xff\xff\xff\x7fabc.", "truncated"),
        "a memo of 2**31 places": (start + b"Nr\xff\xff\xff\x7f.", "impossible memo entry"),
        "a memo of 10**12 places": (b"Np1000000000000\n.", "impossible memo entry"),
        "lists in lists": (start + b"]" * 100_000 + b"a" * 99_999 + b".", "not a pair"),
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
