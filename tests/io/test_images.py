from __future__ import annotations

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline_steps.io.images import (
    BadImage,
    encode_png,
    looks_like_an_image,
    read_image,
    read_noted,
    write_png,
)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def scene() -> NDArray[np.uint8]:
    """Four plain quadrants, so that orientation and colours are unmistakable."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24] = (255, 0, 0)
    image[:16, 24:] = (0, 255, 0)
    image[16:, :24] = (0, 0, 255)
    image[16:, 24:] = (255, 255, 0)
    return image


def test_png_round_trip_is_exact(tmp_path: Path, scene: NDArray[np.uint8]) -> None:
    write_png(tmp_path / "x.png", scene)
    assert np.array_equal(read_image(tmp_path / "x.png"), scene)
    assert encode_png(scene) == encode_png(scene.copy())


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (6, lambda a: np.rot90(a, 1)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation_is_applied(
    scene: NDArray[np.uint8], orientation: int, undo: object
) -> None:
    stored = np.ascontiguousarray(undo(scene))  # type: ignore[operator]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), "JPEG", quality=100, subsampling=0, exif=exif)
    read = read_image(content)
    assert read.shape == scene.shape
    assert np.abs(read.astype(int) - scene).max() < 10


def test_grayscale_is_repeated_over_the_channels() -> None:
    gray = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    read = read_image(encoded(Image.fromarray(gray), "PNG"))
    assert np.array_equal(read, np.stack([gray] * 3, axis=2))


def test_bilevel_and_palette_keep_their_colours(scene: NDArray[np.uint8]) -> None:
    bilevel = Image.fromarray(scene).convert("L").point(lambda v: 255 * (v > 100)).convert("1")
    assert set(np.unique(read_image(encoded(bilevel, "PNG")))) == {0, 255}
    palette = Image.fromarray(scene).quantize(8)
    assert np.array_equal(read_image(encoded(palette, "PNG")), scene)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_is_scaled_not_cut(format: str) -> None:
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    read = read_image(encoded(Image.fromarray(deep), format))
    assert read.dtype == np.uint8
    assert (read.min(), read.max()) == (0, 255)
    assert np.abs(read[:, :, 1] - deep / 257.0).max() <= 0.51


def test_cmyk_jpeg_has_the_colours_it_shows(scene: NDArray[np.uint8]) -> None:
    content = encoded(Image.fromarray(scene).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(read_image(content).astype(int) - scene).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0)).convert(mode)
    image.paste(Image.new("RGBA", (10, 20), (0, 0, 0, 255)).convert(mode), (0, 0))
    read = read_image(encoded(image, "PNG"))
    assert (read[:, :10] == 0).all()
    assert (read[:, 10:] == 255).all()


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 10, 20))
    read = read_image(encoded(image, "PNG", transparency=0))
    assert (read[:, :10] == (200, 100, 50)).all()
    assert (read[:, 10:] == 255).all()


def reason_of(content: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        read_image(content)
    return caught.value.reason


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_named_so(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encoded(Image.fromarray(noise), format)
    assert reason_of(content[: int(share * len(content))]) == "truncated"


@pytest.mark.parametrize("content", [b"", b"hello, no image here", b"%PDF-1.4\n", b"\x00" * 500])
def test_other_files_are_no_images(content: bytes) -> None:
    assert reason_of(content) == "not an image"


def test_tiny_and_floating_images_are_refused() -> None:
    assert reason_of(encoded(Image.new("RGB", (200, 4)), "PNG")) == "too small"
    assert reason_of(encoded(Image.new("F", (32, 32)), "TIFF")) == "unsupported mode"


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (400, 400)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert reason_of(content) == "too large"


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)],
)
def test_only_rgb_bytes_are_encoded(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(image)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_fewer_bits_than_the_file_has_room_for_are_scaled_by_what_is_there(
    scene: NDArray[np.uint8], bits: int, colour: bool, orientation: int
) -> None:
    shown = scene if colour else np.repeat(scene[:, :, :1], 3, axis=2)
    stored = np.ascontiguousarray(np.rot90(shown, 1) if orientation == 6 else shown)
    few = (stored.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    few = few[:, :, ::-1] if colour else few[:, :, 0]
    png = cv2.imencode(".png", np.ascontiguousarray(few))[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = orientation
    read, note = read_noted(with_chunk(png, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert np.array_equal(read, shown)
    assert note == f"{bits} of 16 bits used"


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG file with a further chunk behind its header."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + struct.pack(">I", len(content)) + kind + content + check + png[33:]


def test_a_dark_image_stays_dark_where_its_file_says_so() -> None:
    dark = np.full((32, 32), 4000, np.uint16)
    png = cv2.imencode(".png", dark)[1].tobytes()
    assert read_noted(png)[1] == "12 of 16 bits used"
    for stated, expected in ((16, 16), (12, 249), (14, 62)):
        read, _ = read_noted(with_chunk(png, b"sBIT", bytes([stated])))
        assert read.max() == expected


def test_colours_with_a_profile_are_converted(scene: NDArray[np.uint8]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "RGBs".encode("utf-16-be"))
    swapped = profile.replace(b"rXYZ", b"XXXX").replace(b"bXYZ", b"rXYZ").replace(b"XXXX", b"bXYZ")
    picture = Image.fromarray(np.ascontiguousarray(scene[:, :, ::-1]))
    read = read_image(encoded(picture, "PNG", icc_profile=swapped)).astype(int)
    assert np.abs(read - scene).max() <= 3
    broken = read_image(encoded(Image.fromarray(scene), "PNG", icc_profile=b"none"))
    assert np.array_equal(broken, scene)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC (install pillow-heif)"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL (save it as PNG)"),
    ],
)
def test_formats_that_pillow_lacks_say_what_to_do(content: bytes, reason: str) -> None:
    assert looks_like_an_image(content)
    if reason.startswith("HEIC") and find_spec("pillow_heif"):
        pytest.skip("it is installed")
    assert reason_of(content + bytes(64)) == reason
