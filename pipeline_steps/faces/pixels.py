"""Pixels of aligned faces on their way into a network: checked, resized, normalised.

An array does not say whether it is RGB or BGR (OpenCV's order). Skin of every tone reflects more
red than blue light, because blood and melanin absorb blue (Angelopoulou, "Understanding the color
of human skin", Proc. SPIE 4299, 2001), so a set of faces that are mostly bluer than red has its
channels swapped. One face may be lit in blue; a set hardly is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline_steps.faces.alignment import TEMPLATE_SIZE

ROWS, COLUMNS = (0.27, 0.9), (0.23, 0.77)  # where skin is in an aligned face, shares of its side
GREY = 2.0  # levels of 255 by which red and blue have to differ to count
MIN_FACES = 8  # fewer coloured faces give no verdict
SWAPPED = 0.75  # share of coloured faces that have to be bluer than red


def checked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Aligned faces themselves.

    Raises:
        ValueError: they are not uint8 [n, 112, 112, 3]; the message says what to do about it.
    """
    side = TEMPLATE_SIZE
    if colour_images(images).shape[1:3] != (side, side):
        raise ValueError(
            f"expected aligned faces of {side}x{side} pixels, got {images.shape[2]}x"
            f"{images.shape[1]}: warp them to the template by the align step or by "
            "faces.alignment.align_to_template; resizing or cropping does not align them"
        )
    return images


def colour_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images themselves.

    Raises:
        ValueError: they are not uint8 [n, h, w, 3].
    """
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3:
        return images
    message = f"expected uint8 RGB [n, h, w, 3], got {images.dtype} {list(images.shape)}"
    if images.size and np.issubdtype(images.dtype, np.floating):
        low, high = float(images.min()), float(images.max())
        scale = ", multiplied by 255" if high <= 1.0 else ""
        message += f" with values from {low:.3g} to {high:.3g}: round them{scale}, to uint8"
    raise ValueError(message)


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


def redness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Median of red minus blue over the middle of aligned faces uint8 [n, side, side, 3].

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


def resized(images: NDArray[np.uint8], side: int) -> Tensor:
    """Images at another size, bicubic, antialiased and not rounded, as clean-fid does it.

    Args:
        images: uint8 [n, h, w, 3] RGB.
        side: new height and width in pixels.

    Returns:
        float32 [n, 3, side, side] in [0, 255].

    Raises:
        ValueError: other images.
    """
    out = np.empty((len(colour_images(images)), 3, side, side), np.float32)
    for index, image in enumerate(images):
        for channel in range(3):
            plane = Image.fromarray(image[:, :, channel].astype(np.float32))
            out[index, channel] = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(out.clip(0.0, 255.0))


def resized_8bit(images: NDArray[np.uint8], side: int) -> Tensor:
    """As `resized`, but bilinear and rounded to whole levels, as torchvision resizes PIL images."""
    size = (side, side)
    rows = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images]
    pixels = np.stack([np.asarray(row) for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[n, 3, h, w] in [0, 255] -> (x / 255 - mean) / std, channel by channel."""
    return (pixels / 255.0 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
