"""The largest face of each image, and its region cut out as the identity losses compare it.

MTCNN with facenet-pytorch's networks and weights (see `mtcnn`). Of several faces the one with the
largest box counts, as in ID-Booth. The identity terms of PortraitBooth (Peng et al., CVPR 2024) and
ID-Booth cut that box out and stretch it to the recogniser's input, without any alignment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline_steps.faces.mtcnn import THRESHOLDS, Cascade

# Where a batch stops to pay: beyond, a CPU's caches overflow and a GPU is full.
PIXELS_PER_BATCH = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class Detection:
    """One face of an image; coordinates in the image's pixels, x before y.

    Attributes:
        box: float32 [4] x1, y1, x2, y2; may reach outside the image.
        landmarks: float32 [5, 2] in the order of `faces.alignment`.
        probability: of being a face, in [0, 1].
        others: the image's other faces, the larger first; this one is the largest.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    probability: float
    others: tuple[Detection, ...] = ()

    def nearest(self, box: NDArray[np.floating] | None) -> Detection:
        """Of all faces the one that agrees best with a box (intersection over union); None: this
        one."""
        if box is None or not self.others:
            return self
        return max((self, *self.others), key=lambda face: _agreement(face.box, np.asarray(box)))


class Detector:
    """Finds the largest face of each image.

    Args:
        device: "cpu" or "cuda".
        min_face_size, thresholds: as of `Cascade`.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        min_face_size: int = 20,
        thresholds: tuple[float, float, float] = THRESHOLDS,
    ) -> None:
        self.device = torch.device(device)
        self.cascade = Cascade(min_face_size, thresholds).to(self.device)
        self.pixels_per_batch = PIXELS_PER_BATCH.get(self.device.type, PIXELS_PER_BATCH["cpu"])

    def detect(
        self, images: Sequence[NDArray[np.uint8]], *, padding: float = 0.0
    ) -> list[Detection | None]:
        """Detect faces in images of any sizes; equal sizes are searched together.

        Args:
            images: uint8 [h, w, 3] RGB each.
            padding: share of height and width by which each side is extended in black before the
                search, so that faces cut off by the border are found; coordinates are those of the
                image without it.

        Returns:
            For each image its largest face, or None.

        Raises:
            ValueError: an image is not uint8 [h, w, 3], or a negative padding.
        """
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image {index}: expected uint8 [h, w, 3], got {image.dtype} {image.shape}"
                )
            by_size[image.shape].append(index)
        found: list[Detection | None] = [None] * len(images)
        for indices in by_size.values():
            stack = torch.from_numpy(np.stack([images[index] for index in indices]))
            faces = self.detect_tensor(stack.permute(0, 3, 1, 2), padding=padding)
            for index, face in zip(indices, faces, strict=True):
                found[index] = face
        return found

    def detect_tensor(self, images: Tensor, *, padding: float = 0.0) -> list[Detection | None]:
        """As `detect`, for a batch uint8 [n, 3, h, w] RGB that may already lie on the device."""
        if padding < 0:
            raise ValueError(f"padding is a share of the image's sides, not {padding}")
        height, width = images.shape[2:]
        down, across = round(height * padding), round(width * padding)
        area = (height + 2 * down) * (width + 2 * across)
        offset = np.array([across, down], dtype=np.float32)
        found: list[Detection | None] = []
        for part in torch.split(images, max(1, self.pixels_per_batch // area)):
            padded = F.pad(part.to(self.device).contiguous(), (across, across, down, down))
            # Whoever calls this within a network's 16-bit arithmetic gets the same boxes.
            with torch.autocast(self.device.type, enabled=False):
                faces = self.cascade(padded)
            found += [_largest(boxes, points, offset) for boxes, points in faces]
        return found


def _largest(
    boxes: NDArray[np.float32], landmarks: NDArray[np.float32], offset: NDArray[np.float32]
) -> Detection | None:
    """The largest of boxes [m, 5] with landmarks [m, 5, 2], moved back by the padding."""
    if len(boxes) == 0:
        return None
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    first, *others = (
        Detection(
            box=boxes[index, :4] - np.tile(offset, 2),
            landmarks=landmarks[index] - offset,
            probability=float(boxes[index, 4]),
        )
        for index in np.argsort(-areas, kind="stable")
    )
    return replace(first, others=tuple(others))


def _agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Intersection over union of two boxes [4]."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return common / (sum(areas) - common)


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


def integer_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [n, 4] as int64 with 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height.

    Fractions are cut off, what lies outside the image too, and at least one pixel is left.
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
