"""Verification benchmarks in InsightFace's `.bin` format: pairs of aligned faces, same or not.

The format: a pickle of (list of 2n encoded images, list of n flags); images 2i and 2i + 1 are
pair i.

A pickle can ask for any function to be called and for any amount of memory. So its opcodes are
looked through first: none but those that images and flags need, none that announces more than the
file holds. Then it is read by an unpickler for which all names stand for a few constructors of this
module, which check their arguments: byte strings as Python 3 writes them in protocols 0 to 2
(`_codecs.encode`), and NumPy's arrays and scalars of plain integers (images from `cv2.imencode`, or
flags). Nothing is imported or called on a file's behalf; everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.images import encode_png
from pipeline_steps.runtime.errors import StepError

IMAGE_SIZE = 112
MAX_FILE_BYTES = 2 * 2**30
MAX_PAIRS = 20_000  # decoded 1.5 GB; the largest of the five benchmarks has 7 000
# Protocol 4 is what InsightFace's own packer writes today and every Python since 3.4 reads.
PICKLE_PROTOCOL = 4

MAX_OPCODES = 2_000_000  # 20 000 pairs of NumPy arrays take about 1.2 million; memo places too
MAX_DIMENSIONS = 3
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
NEEDED = PUTS | {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
INTEGERS = frozenset({"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"})  # NumPy's type codes


class RefusedFile(ValueError):
    """The file is broken, or holds something other than images and flags."""


def read_bin(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a benchmark without executing anything that its pickle asks for.

    Args:
        path: a `.bin` file as InsightFace distributes them (lfw.bin, agedb_30.bin, ...).

    Returns:
        images uint8 [2n, 112, 112, 3], RGB, pair i at rows 2i and 2i + 1;
        same bool [n], True where both images show one person.

    Raises:
        StepError: no such file, or anything but images and flags inside (nothing was executed), or
            an image that cannot be decoded or is not 112 x 112.
    """
    encoded, flags = _opened(path)
    images = np.empty((len(encoded), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for i, content in enumerate(encoded):
        images[i] = _decoded(path, i, content)
    return images, np.array(flags, dtype=bool)


def count_pairs(path: Path) -> int:
    """Number of pairs of a benchmark, of which the first image alone is decoded.

    Raises:
        StepError: as :func:`read_bin`.
    """
    encoded, flags = _opened(path)
    _decoded(path, 0, encoded[0])
    return len(flags)


def write_bin(path: Path, images: np.ndarray, same: Sequence[bool] | np.ndarray) -> None:
    """Write a benchmark that InsightFace's reader opens (losslessly, as PNG); atomic.

    Args:
        path: file to write.
        images: uint8 [2n, 112, 112, 3], RGB.
        same: bool [n].

    Raises:
        ValueError: other shapes or types.
    """
    expected = (2 * len(same), IMAGE_SIZE, IMAGE_SIZE, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise ValueError(f"expected uint8 {expected}, got {images.dtype} {images.shape}")
    encoded = [encode_png(image) for image in images]
    flags = [bool(flag) for flag in same]
    write_bytes(path, pickle.dumps((encoded, flags), protocol=PICKLE_PROTOCOL))


def _opened(path: Path) -> tuple[list[Any], list[bool]]:
    try:
        return _images_and_flags(_read(path))
    except RefusedFile as error:
        raise StepError(
            f"{path} was refused: {error}; expected InsightFace's pair file, a list of encoded "
            "images and a list of flags: fetch it again"
        ) from error


def _decoded(path: Path, number: int, content: Any) -> np.ndarray:
    try:
        return _decode(content)
    except RefusedFile as error:
        raise StepError(f"{path} was refused: image {number} {error}; fetch it again") from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RefusedFile(f"it is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise StepError(
            f"cannot read the benchmark {path} ({error.strerror}); put InsightFace's .bin there"
        ) from error


def _images_and_flags(content: bytes) -> tuple[list[Any], list[bool]]:
    """Encoded images (bytes-like) and flags, their numbers and kinds checked."""
    match _unpickled(content):
        case (list() | tuple() as images, (list() | tuple() | _Array()) as flags):
            pass
        case _:
            raise RefusedFile("it is not a pair of two lists")
    n_pairs = flags.values.size if isinstance(flags, _Array) else len(flags)
    if not 1 <= n_pairs <= MAX_PAIRS:
        raise RefusedFile(f"it has {n_pairs} pairs (allowed: 1 to {MAX_PAIRS})")
    if len(images) != 2 * n_pairs:
        raise RefusedFile(f"it has {len(images)} images for {n_pairs} pairs")
    listed = flags.values.ravel().tolist() if isinstance(flags, _Array) else flags
    return [_encoded_image(item) for item in images], [_flag(item) for item in listed]


def _encoded_image(item: object) -> Any:
    if isinstance(item, _Array) and item.values.dtype == np.uint8:
        return item.values
    if isinstance(item, (bytes, bytearray)):
        return item
    raise RefusedFile(f"its list of images holds {_kind(item)}")


def _flag(item: object) -> bool:
    if isinstance(item, int) and item in (0, 1):
        return bool(item)
    raise RefusedFile(f"its list of flags holds {_kind(item)}")


def _kind(item: object) -> str:
    names = {str: "text", bytes: "bytes", int: "a number", type(None): "nothing", list: "a list"}
    return names.get(type(item), "something else")


def _decode(content: Any) -> np.ndarray:
    """Encoded image -> uint8 [112, 112, 3] RGB; the size is checked before any pixel is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                width, height = image.size
                raise RefusedFile(f"is {width} x {height} pixels; expected 112 x 112, aligned")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RefusedFile("is no JPEG and no PNG") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, RefusedFile):
            raise
        raise RefusedFile(f"cannot be decoded ({error})") from error


def _unpickled(content: bytes) -> object:
    """What a pickle of protocol 0 to 5 holds: lists, tuples, bytes, text, integers, arrays."""
    try:
        _check_opcodes(content)
        return _Unpickler(content).load()
    except RefusedFile:
        raise
    except Exception as error:  # a pickle that is no pickle can fail in any way
        raise RefusedFile(f"it is broken or truncated ({error})") from error


def _check_opcodes(content: bytes) -> None:
    stream = io.BytesIO(content)
    for _ in range(MAX_OPCODES):
        opcode = OPCODES.get(stream.read(1))
        if opcode is None:
            raise RefusedFile("it is truncated, or no pickle at all")
        if opcode.name not in NEEDED:
            raise RefusedFile(f"it uses the opcode {opcode.name}, which no image and no flag needs")
        if opcode.name == "STOP":
            return
        argument: Any = None
        if opcode.name == "STRING":  # bytes of Python 2; pickletools takes them for ASCII
            stream.readline()
        elif opcode.arg is not None:
            argument = opcode.arg.reader(stream)  # a ValueError where the file is shorter
        if opcode.name in PUTS and not 0 <= argument <= MAX_OPCODES:
            raise RefusedFile("it is broken (impossible memo entry)")
    raise RefusedFile(f"it has more than {MAX_OPCODES} pickle opcodes")


class _Unpickler(pickle.Unpickler):
    """Knows no names but those of the constructors below.

    Attributes:
        budget: characters of text that may still be encoded. Honest files encode no more than they
            hold; a small one that encodes one remembered text many times would.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.budget = len(content)

    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        match module.replace("numpy._core.", "numpy.core."), name:
            case ("_codecs", "encode") | ("builtins" | "__builtin__", "bytes" | "bytearray"):
                return self._bytes
            case "numpy", "ndarray":
                return _Array
            case "numpy", "dtype":
                return _Dtype
            case "numpy.core.multiarray", "_reconstruct":
                return _reconstruct
            case "numpy.core.multiarray", "scalar":
                return _scalar
            case "numpy.core.numeric", "_frombuffer":
                return _frombuffer
        raise RefusedFile(f"it asks for '{module}.{name}', which is no image and no flag")

    def _bytes(self, *arguments: object) -> bytes:
        match arguments:
            case ():
                return b""
            case (bytes() as content,):
                return content
            case (str() as text, "latin1" | b"latin1" | "latin-1"):
                self.budget -= len(text)
                if self.budget < 0:
                    raise RefusedFile("it would grow beyond its own size")
                return text.encode("latin-1")
        raise RefusedFile("it makes bytes in a way that images and flags never need")


class _Dtype:
    """A NumPy type of plain little-endian integers or booleans."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        start = code[:8]  # the whole of it may be huge
        text = start.decode("latin-1") if isinstance(start, bytes) else start
        self.code = text.lstrip("<|")
        if self.code not in INTEGERS:
            raise RefusedFile(f"it holds a NumPy array of type {text!r}, not of plain integers")

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), "<" | "|" | b"<" | b"|", None, None, None, *_):
                return
        raise RefusedFile("it holds a NumPy array of an unusual type")


class _Array:
    """A NumPy array: empty as `_reconstruct` makes it, until its state comes."""

    def __init__(self) -> None:
        self.values = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype() as dtype, False | 0, content):
                if isinstance(content, (bytes, bytearray)):
                    self.values = _values(content, dtype, shape)
                    return
        raise RefusedFile("it holds an array that is no plain NumPy array")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array:
        raise RefusedFile("it makes an array of something else than numbers")
    return _Array()


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order not in ("C", b"C"), content))
    return array


def _scalar(dtype: _Dtype, content: bytes) -> object:
    return _values(content, dtype, ()).item()


def _values(content: bytes | bytearray, dtype: _Dtype, shape: tuple[object, ...]) -> np.ndarray:
    """The array of a buffer, which is not copied."""
    if len(shape) > MAX_DIMENSIONS:
        raise RefusedFile(f"it holds a NumPy array of {len(shape)} dimensions")
    sizes = [size for size in shape if isinstance(size, int) and 0 <= size <= len(content)]
    values = np.frombuffer(content, f"<{dtype.code}")
    if len(sizes) != len(shape) or math.prod(sizes) != values.size:
        raise RefusedFile("it holds a NumPy array of an impossible shape")
    return values
