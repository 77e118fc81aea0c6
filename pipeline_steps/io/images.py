"""Images in and out: whatever a camera or an archive holds comes in as upright 8-bit RGB."""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.runtime.errors import StepError

MIN_SIDE = 16  # pixels; nothing smaller can hold a face that a detector finds
PNG_LEVEL = 1  # half the encoding time of the default level for some 10 % more bytes

_DIRECT = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}
_WITH_ALPHA = {"RGBA", "LA", "La", "RGBa", "PA"}

# How files of images begin: JPEG, PNG, GIF, WebP, TIFF, BMP, JPEG 2000, HEIF and AVIF, JPEG XL,
# PNM, Photoshop, and icons.
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|II\*\x00|MM\x00\*|BM.{4}\x00{4}"
    rb"|\x00{3}\x0c(?:jP  |JXL )|\xffO\xffQ|.{4}ftyp(?:hei|hev|mif|msf|avi[fs])"
    rb"|P[1-7]\s+(?:#|\d)|8BPS|\x00\x00\x01\x00",
    re.DOTALL,
)


def looks_like_an_image(beginning: bytes) -> bool:
    """Whether a file with these first bytes, 32 are enough, is an image, whatever it is called."""
    return _BEGINNINGS.match(beginning) is not None


class BadImage(ValueError):
    """An image that cannot be used; ``reason`` is short enough for a manifest's column."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_image(source: str | os.PathLike[str] | bytes) -> NDArray[np.uint8]:
    """Read one image file.

    Args:
        source: Path of the file, or its bytes.

    Returns:
        uint8 [h, w, 3], RGB, upright (the EXIF orientation is applied). Grayscale is repeated over
        the channels, 16-bit is scaled to 8-bit, CMYK is converted without colour profile, and
        transparency is laid over white.

    Raises:
        BadImage: reason "not an image", "truncated", "unsupported mode", "too small", "too large"
            or "unreadable".
    """
    stream = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its pixel limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too large", str(error)) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        text = str(error)
        cut = any(word in text.lower() for word in ("truncated", "end of file", "not enough"))
        raise BadImage("truncated" if cut else "unreadable", text) from error
    if min(image.size) < MIN_SIDE:
        raise BadImage("too small", f"{image.width}x{image.height}")
    return _to_rgb(image)


def noted_bytes(path: str | os.PathLike[str], sha256: str | None, step: str) -> bytes:
    """Bytes of an image that a manifest names, which have to be those that were noted.

    Args:
        path: The image.
        sha256: As in the manifest; None or "" where it notes none.
        step: Rule that writes the image, for the message.

    Raises:
        StepError: the image is missing, unreadable, or another one.
    """
    try:
        content = Path(path).read_bytes()
        wrong = "was cut or changed" if sha256 and sha256_bytes(content) != sha256 else ""
    except OSError as error:
        wrong = "is missing" if isinstance(error, FileNotFoundError) else f"is unreadable ({error})"
    if wrong:
        raise StepError(
            f"image {os.fspath(path)} {wrong} since the manifest that names it was written: make "
            f"it again with snakemake --forcerun {step}"
        )
    return content


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of a uint8 [h, w, 3] RGB image; equal images give equal bytes."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def write_png(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Write a uint8 [h, w, 3] RGB image as PNG, atomically."""
    write_bytes(path, encode_png(image))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return _array(Image.alpha_composite(white, rgba).convert("RGB"))
    if image.mode in _DIRECT:
        return _array(image.convert("RGB"))
    if image.mode.startswith("I"):  # I;16, I;16B, ... and 16-bit values held in 32-bit I
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unsupported mode", f"{image.mode} beyond 16 bits")
        gray = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    raise BadImage("unsupported mode", image.mode)


def _array(image: Image.Image) -> NDArray[np.uint8]:
    return cast("NDArray[np.uint8]", np.array(image, dtype=np.uint8))
