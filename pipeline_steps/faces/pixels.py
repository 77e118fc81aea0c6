"""Pixels of aligned faces on their way into a network: checked, resized, normalised."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline_steps.faces.alignment import TEMPLATE_SIZE


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


def resized(images: NDArray[np.uint8], side: int) -> Tensor:
    """Images at another size, antialiased and not rounded, as clean-fid does it.

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


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[n, 3, h, w] in [0, 255] -> (x / 255 - mean) / std, channel by channel."""
    return (pixels / 255.0 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
