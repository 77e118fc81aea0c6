"""Square crops about a face, and where their points come to stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Square:
    """A square region of an image: left and top edge and side, in pixels, may be fractions."""

    left: float
    top: float
    side: float


def face_square(box: NDArray[np.floating], height: int, width: int, margin: float) -> Square:
    """The square about a face that shows margin times its size and stays inside the image.

    Where it would reach over the border it is moved, and where it does not fit it is shrunk, so
    that no invented border gets into the picture.

    Args:
        box: [4] x1, y1, x2, y2 of the face in pixels.
        height, width: of the image in pixels.
        margin: side of the square over the longer side of the box.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    side = min(margin * max(x2 - x1, y2 - y1), float(height), float(width))
    # The box counts from the first pixel's centre, the square from its edge.
    left = min(max((x1 + x2 + 1 - side) / 2, 0.0), width - side)
    top = min(max((y1 + y2 + 1 - side) / 2, 0.0), height - side)
    return Square(left, top, side)


def cut_square(image: NDArray[np.uint8], square: Square, size: int) -> NDArray[np.uint8]:
    """Cut a square out and resample it with antialiasing (Lanczos over the region).

    Args:
        image: uint8 [h, w, 3] RGB.
        square: a region inside the image.
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3] RGB.
    """
    edges = (square.left, square.top, square.left + square.side, square.top + square.side)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=edges)
    return np.asarray(resized, dtype=np.uint8)


def into_square(points: NDArray[np.floating], square: Square, size: int) -> NDArray[np.float64]:
    """Points [..., 2] of the image in the pixels of its cut square.

    The centre of a pixel is a whole number on both sides, so that its edges are half a pixel away.
    """
    corner = np.array([square.left, square.top])
    scaled = (np.asarray(points, dtype=np.float64) + 0.5 - corner) * (size / square.side)
    return np.asarray(scaled - 0.5)


def shrunk(image: NDArray[np.uint8], longer_side: int) -> tuple[NDArray[np.uint8], float, float]:
    """The image reduced so that its longer side is at most `longer_side` pixels.

    Returns:
        the image, and by which factors x and y were multiplied (1 where it was small enough).
    """
    height, width = image.shape[:2]
    factor = longer_side / max(height, width)
    if factor >= 1:
        return image, 1.0, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.uint8), size[0] / width, size[1] / height


def unshrunk(points: NDArray[np.floating], across: float, down: float) -> NDArray[np.float64]:
    """Points [..., 2] of a shrunk image in the pixels of the original."""
    factors = np.array([across, down])
    return np.asarray((np.asarray(points, dtype=np.float64) + 0.5) / factors - 0.5)
