"""The differentiable face region that the identity losses compare.

Source: the identity terms of PortraitBooth (Peng et al., CVPR 2024) and ID-Booth cut the detected
box out of the decoded image and stretch it to the recogniser's input, without any alignment.
"""

from __future__ import annotations

import torch
from torch import Tensor


def integer_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Pixel bounds of boxes, clipped to the image.

    Args:
        boxes: [n, 4] x1, y1, x2, y2 in pixels, any real dtype; may reach outside the image.
        height, width: of the image in pixels.

    Returns:
        [n, 4] int64 x1, y1, x2, y2 with 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height: fractions
        are cut off, and at least one pixel is left.
    """
    corner = boxes.detach().trunc().long()
    x1 = corner[:, 0].clamp(0, width - 1)
    y1 = corner[:, 1].clamp(0, height - 1)
    x2 = torch.maximum(corner[:, 2].clamp(max=width), x1 + 1)
    y2 = torch.maximum(corner[:, 3].clamp(max=height), y1 + 1)
    return torch.stack([x1, y1, x2, y2], dim=1)


def _taps(start: Tensor, stop: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two source indices [n, size] and the weight of the second, along one axis."""
    length = (stop - start)[:, None]
    steps = torch.arange(size, device=start.device, dtype=dtype) + 0.5
    # Half-pixel centres, clamped at the first pixel: what F.interpolate does.
    position = (steps * length.to(dtype) / size - 0.5).clamp(min=0.0)
    low = position.floor().long()
    high = torch.minimum(low + 1, length - 1)
    return start[:, None] + low, start[:, None] + high, position - low.to(dtype)


def crop_and_resize(x: Tensor, boxes: Tensor, size: int = 112) -> Tensor:
    """Cut one box out of each image and stretch it to a square, differentiably.

    Equals `F.interpolate(x[i:i+1, :, y1:y2, x1:x2], (size, size), mode="bilinear",
    align_corners=False)` for the integer box of `integer_boxes`, for all images at once and without
    waiting for the device. Gradients reach `x` and not the boxes, and are summed in a fixed order.

    Args:
        x: [n, c, h, w] floating point, any range.
        boxes: [n, 4] x1, y1, x2, y2 in pixels, one box for each image.
        size: height and width of the result in pixels.

    Returns:
        [n, c, size, size], the range and dtype of `x`; no antialiasing.

    Raises:
        ValueError: shapes that do not fit, or `x` not floating point.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"expected floating-point images [n, c, h, w], got {x.dtype} {x.shape}")
    if boxes.shape != (len(x), 4):
        raise ValueError(f"expected one box for each of {len(x)} images, got {tuple(boxes.shape)}")
    bounds = integer_boxes(boxes.to(x.device), x.shape[2], x.shape[3])
    precision = torch.promote_types(x.dtype, torch.float32)
    top, bottom, down = _taps(bounds[:, 1], bounds[:, 3], size, precision)
    left, right, across = _taps(bounds[:, 0], bounds[:, 2], size, precision)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    pixels = x.permute(0, 2, 3, 1)

    def row(y: Tensor) -> Tensor:
        first = pixels[image, y[:, :, None], left[:, None, :]].to(precision)
        second = pixels[image, y[:, :, None], right[:, None, :]].to(precision)
        return torch.lerp(first, second, across[:, None, :, None].expand_as(first))

    upper, lower = row(top), row(bottom)
    out = torch.lerp(upper, lower, down[:, :, None, None].expand_as(upper))
    return out.permute(0, 3, 1, 2).to(x.dtype)
