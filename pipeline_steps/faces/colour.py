"""Colour order of face images, judged by the skin in them.

An array does not say whether it is RGB or BGR (OpenCV's order). Skin of every tone reflects more
red than blue light, because blood and melanin absorb blue (Angelopoulou, "Understanding the color
of human skin", Proc. SPIE 4299, 2001), so a set of faces that are mostly bluer than red has its
channels swapped. One face may be lit in blue; a set hardly is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = (0.27, 0.9), (0.23, 0.77)  # where skin is in an aligned face, shares of its side
GREY = 2.0  # levels of 255 by which red and blue have to differ to count
MIN_FACES = 8  # fewer coloured faces give no verdict
SWAPPED = 0.75  # share of coloured faces that have to be bluer than red


def redness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Median over the middle of each face of red minus blue.

    Args:
        images: uint8 [n, side, side, 3], aligned faces, taken as RGB.

    Returns:
        [n], in [-255, 255]; above zero for skin in RGB order, 0 for grey images.
    """
    side = images.shape[1]
    rows, columns = (
        slice(round(start * side), round(stop * side)) for start, stop in (ROWS, COLUMNS)
    )
    middle = images[:, rows, columns].astype(np.int16)
    difference = (middle[..., 0] - middle[..., 2]).reshape(len(images), -1)
    return np.asarray(np.median(difference, axis=1), dtype=np.float64)


def check_rgb(images: NDArray[np.uint8]) -> None:
    """Refuse faces whose colour channels are swapped.

    Grey images and sets with fewer than `MIN_FACES` coloured faces pass: nothing can be told.

    Args:
        images: uint8 [n, side, side, 3], aligned faces of several people.

    Raises:
        ValueError: three quarters of the coloured faces are bluer than red.
    """
    if len(images) == 0:
        return
    values = redness(images)
    coloured = np.abs(values) > GREY
    blue = int((values < -GREY).sum())
    if coloured.sum() >= MIN_FACES and blue >= SWAPPED * coloured.sum():
        raise ValueError(
            f"{blue} of {int(coloured.sum())} coloured faces are bluer than red: the images look "
            "like BGR (OpenCV's order), expected RGB. Swap the channels (images[..., ::-1]); if "
            "the light really was blue, set features.check_colour to false"
        )
