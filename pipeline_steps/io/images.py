"""Images in and out: whatever a camera or an archive holds comes in as upright 8-bit RGB."""

from __future__ import annotations

import io
import os
import re
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.shards import content_of
from pipeline_steps.runtime.errors import StepError

MIN_SIDE = 16  # pixels; nothing smaller can hold a face that a detector finds
PNG_LEVEL = 1  # half the encoding time of the default level for some 10 % more bytes

_DIRECT = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}
_WITH_ALPHA = {"RGBA", "LA", "La", "RGBa", "PA"}

# How files of images begin: JPEG, PNG, GIF, WebP, TIFF, BMP, JPEG 2000, HEIF and AVIF, JPEG XL,
# PNM, Photoshop, QOI, DDS, SGI, and icons.
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|II\*\x00|MM\x00\*|BM.{4}\x00{4}"
    rb"|\x00{3}\x0c(?:jP  |JXL )|\xffO\xffQ|.{4}ftyp(?:hei|hev|mif|msf|avi[fs])"
    rb"|P[1-7]\s+(?:#|\d)|8BPS|qoif|DDS |\x01\xda[\x00\x01]|\x00\x00\x01\x00|icns",
    re.DOTALL,
)


def looks_like_an_image(beginning: bytes) -> bool:
    """Whether a file with these first bytes, 32 are enough, is an image, whatever it is called."""
    return _BEGINNINGS.match(beginning) is not None


# What to do about formats that Pillow may lack, by how their files begin.
_WANTED = {
    rb".{4}ftypavi[fs]": "AVIF (install pillow 11.3 or later)",
    rb".{4}ftyp(?:hei|hev|mif|msf)": "HEIC (install pillow-heif)",
    rb"\xff\n|\x00{3}\x0cJXL ": "JPEG XL (save it as PNG)",
    rb"\x00{3}\x0cjP  |\xffO\xffQ": "JPEG 2000 (install a Pillow with OpenJPEG)",
}


class BadImage(ValueError):
    """An image that cannot be used; ``reason`` is short enough for a manifest's column."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_image(source: str | os.PathLike[str] | bytes) -> NDArray[np.uint8]:
    """As `read_noted`, the image alone."""
    return read_noted(source)[0]


def read_noted(source: str | os.PathLike[str] | bytes) -> tuple[NDArray[np.uint8], str]:
    """Read one image file; of an animated one the first image.

    Args:
        source: Path of the file, or of one in the shard beside it, or its bytes.

    Returns:
        uint8 [h, w, 3], RGB in sRGB, upright (the EXIF orientation is applied), and what was done
        to its brightness, if anything. Grayscale is repeated over the channels; 16 bits, or as many
        of them as the image uses, are scaled to 8; colours with an ICC profile are converted, and
        CMYK without one plainly; transparency is laid over white.

    Raises:
        BadImage: reason "not an image", "truncated", "unsupported mode", "too small", "too large",
            "unreadable", or what to install for its format.
    """
    content = source if isinstance(source, bytes) else content_of(Path(source))
    _register_heif()
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its pixel limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                opened.load()
                image, note = _scaled(opened, content)
                image = ImageOps.exif_transpose(image)
        if min(image.size) < MIN_SIDE:
            raise BadImage("too small", f"{image.width}x{image.height}")
        return _to_rgb(image), note
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        wanted = (why for how, why in _WANTED.items() if re.match(how, content, re.DOTALL))
        raise BadImage(next(wanted, "not an image")) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too large", str(error)) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        text = str(error)
        cut = any(word in text.lower() for word in ("truncated", "end of file", "not enough"))
        raise BadImage("truncated" if cut else "unreadable", text) from error


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, where pillow-heif is installed (the extra heif)."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


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
        content = content_of(Path(path))
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


def resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square image uint8 [h, h, 3] with another side, shrunk without aliasing (bilinear)."""
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _scaled(opened: Image.Image, content: bytes) -> tuple[Image.Image, str]:
    """The image with 8 bits where it has 16, and how many of these it uses, if not all."""
    if opened.mode.startswith("I"):  # I;16, I;16B, ... and 16-bit values held in 32-bit I
        values = np.asarray(opened)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unsupported mode", f"{opened.mode} beyond 16 bits")
    else:
        # Pillow keeps the upper bytes of 16-bit colours, which are dark where few bits are used.
        png, tags = content.startswith(b"\x89PNG"), getattr(opened, "tag_v2", {})
        deep = content[24] == 16 if png else 16 in np.atleast_1d(tags.get(258, 8))
        if not deep or np.asarray(opened.convert("RGB")).max() >= 64:
            return opened, ""
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
            return opened, ""
        values = decoded[:, :, 2::-1]
    peak, stated = int(values.max()), _stated_bits(content)
    known = [stated] if stated and peak < 2**stated else [8, 10, 12, 14] if not stated else []
    bits = next((bits for bits in known if 0 < peak < 2**bits), 16)
    most = 2**bits - 1
    image = Image.fromarray(((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8))
    image.info["exif"] = opened.getexif().tobytes()
    return image, f"{bits} of 16 bits used" if bits < 16 else ""


def _stated_bits(content: bytes) -> int:
    """Significant bits by a PNG's chunk sBIT (PNG, Section 11.3.2.7); 0 for none."""
    place = content.find(b"sBIT", 0, content.find(b"IDAT") + 1 or None)
    if not content.startswith(b"\x89PNG") or place < 0:
        return 0
    return max(content[place + 4 : place + 4 + content[place - 1]][:3], default=0)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, rgba).convert("RGB")
    elif image.mode in _DIRECT:
        flat = image if image.mode == "CMYK" else image.convert("RGB")
    else:
        raise BadImage("unsupported mode", image.mode)
    return np.array(_in_srgb(flat, image.info.get("icc_profile")), dtype=np.uint8)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as they are meant; a profile that cannot be used, or is sRGB, changes nothing."""
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")).profile
        described = own.profile_description or ""
        if own.xcolor_space.strip() == image.mode and "sRGB" not in described:
            standard = ImageCms.createProfile("sRGB")
            return cast(
                "Image.Image",
                ImageCms.profileToProfile(
                    image, ImageCms.ImageCmsProfile(own), standard, outputMode="RGB"
                ),
            )
    return image.convert("RGB")
