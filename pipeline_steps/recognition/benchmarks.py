"""Verification benchmarks in InsightFace's `.bin` format: pairs of aligned faces, same or not.

The format: a pickle of (list of 2n encoded images, list of n flags); images 2i and 2i + 1 are
pair i.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.images import encode_png
from pipeline_steps.recognition.binary_pairs import Array, RefusedFile, read_plain_pickle
from pipeline_steps.runtime.errors import StepError

IMAGE_SIZE = 112
MAX_FILE_BYTES = 2 * 2**30
MAX_PAIRS = 20_000  # decoded 1.5 GB; the largest of the five benchmarks has 7 000
# Protocol 4 is what InsightFace's own packer writes today and every Python since 3.4 reads.
PICKLE_PROTOCOL = 4


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
    try:
        encoded, flags = _images_and_flags(_read(path))
    except RefusedFile as error:
        raise StepError(
            f"{path} was refused: {error}; expected InsightFace's pair file, a list of encoded "
            "images and a list of flags: fetch it again"
        ) from error
    images = np.empty((len(encoded), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for i, content in enumerate(encoded):
        try:
            images[i] = _decode(content)
        except RefusedFile as error:
            raise StepError(f"{path} was refused: image {i} {error}; fetch it again") from error
    return images, np.array(flags, dtype=bool)


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


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RefusedFile(f"it is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise StepError(
            f"cannot read the benchmark {path} ({error.strerror}); put InsightFace's .bin there"
        ) from error


def _images_and_flags(content: bytes) -> tuple[list[bytes], list[bool]]:
    match read_plain_pickle(content):
        case (list() | tuple() as images, (list() | tuple() | Array()) as flags):
            pass
        case _:
            raise RefusedFile("it is not a pair of two lists")
    n_pairs = flags.size if isinstance(flags, Array) else len(flags)
    if not 1 <= n_pairs <= MAX_PAIRS:
        raise RefusedFile(f"it has {n_pairs} pairs (allowed: 1 to {MAX_PAIRS})")
    if len(images) != 2 * n_pairs:
        raise RefusedFile(f"it has {len(images)} images for {n_pairs} pairs")
    encoded = [_encoded_image(item) for item in images]
    return encoded, [
        _flag(item) for item in (flags.values() if isinstance(flags, Array) else flags)
    ]


def _encoded_image(item: object) -> bytes:
    if isinstance(item, Array) and item.code == "u1":
        return item.content
    if isinstance(item, bytes):
        return item
    raise RefusedFile(f"its list of images holds {_kind(item)}")


def _flag(item: object) -> bool:
    if isinstance(item, int) and item in (0, 1):
        return bool(item)
    raise RefusedFile(f"its list of flags holds {_kind(item)}")


def _kind(item: object) -> str:
    names = {str: "text", bytes: "bytes", int: "a number", type(None): "nothing", list: "a list"}
    return names.get(type(item), "something else")


def _decode(content: bytes) -> np.ndarray:
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
