"""Face detection: the largest face of each image, with its landmarks.

MTCNN with facenet-pytorch's networks and weights (see `cascade`). Of several faces the one with the
largest box counts, as in ID-Booth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline_steps.faces.cascade import Cascade

# Where a batch stops to pay: beyond, a CPU's caches overflow and a GPU is full.
PIXELS_PER_BATCH = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class Detection:
    """One face of an image; coordinates in the image's pixels, x before y.

    Attributes:
        box: float32 [4] x1, y1, x2, y2; may reach outside the image.
        landmarks: float32 [5, 2] left eye, right eye, nose tip, left and right mouth corner; left
            and right as seen in the image.
        probability: of being a face, in [0, 1].
        n_faces: how many faces the image holds; this one is the largest.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    probability: float
    n_faces: int


class Detector:
    """Finds the largest face of each image.

    Args:
        device: "cpu" or "cuda".
        min_face_size: side of the smallest face that is searched for, in pixels.
        thresholds: face probability that a candidate must exceed after each of the three stages.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        min_face_size: int = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
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
        """Detect faces in a batch that may already lie on the device.

        Args:
            images: uint8 [n, 3, h, w] RGB.
            padding: as in `detect`.

        Returns:
            For each image its largest face, or None.

        Raises:
            ValueError: the images are not uint8 [n, 3, h, w], or a negative padding.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 [n, 3, h, w], got {images.dtype} {images.shape}")
        if padding < 0:
            raise ValueError(f"padding is a share of the image's sides, not {padding}")
        height, width = images.shape[2:]
        down, across = round(height * padding), round(width * padding)
        area = (height + 2 * down) * (width + 2 * across)
        found: list[Detection | None] = []
        for part in torch.split(images, max(1, self.pixels_per_batch // area)):
            padded = F.pad(part.to(self.device).contiguous(), (across, across, down, down))
            offset = np.array([across, down], dtype=np.float32)
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
    best = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return Detection(
        box=boxes[best, :4] - np.tile(offset, 2),
        landmarks=landmarks[best] - offset,
        probability=float(boxes[best, 4]),
        n_faces=len(boxes),
    )
