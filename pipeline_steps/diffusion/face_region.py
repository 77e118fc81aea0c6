"""Identity embeddings of the face region of decoded images, with gradients.

Source: ID-Booth, Eq. 7 and 8: the largest box of MTCNN on the clamped decoded image, stretched to the
recogniser's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.faces.recogniser import Recogniser


class FaceEmbedder(Protocol):
    """Finds the largest face of images and embeds face regions."""

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        """Largest box (x1, y1, x2, y2), in pixels, of each of uint8 [n, 3, h, w]; None: no face."""

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Embeddings [n, d] of the boxes [n, 4] of images [n, 3, h, w] in [-1, 1]."""


class FaceRegion:
    """MTCNN, the differentiable crop, and a recogniser."""

    def __init__(self, detector: Detector, recogniser: Recogniser) -> None:
        self._detector = detector
        self._recogniser = recogniser

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        found = self._detector.detect_tensor(images)
        return [None if face is None else face.box for face in found]

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        from pipeline_steps.faces.crop import crop_and_resize

        return self._recogniser.embed_tensor(crop_and_resize(images, boxes))


def to_uint8(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] (clamped here) as uint8 of the same shape."""
    scaled = (images.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8)


def to_arrays(images: Tensor) -> NDArray[np.uint8]:
    """uint8 [n, 3, h, w] as a NumPy array [n, h, w, 3]."""
    array: NDArray[np.uint8] = images.permute(0, 2, 3, 1).cpu().numpy()
    return array


def from_arrays(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images uint8 [h, w, 3] RGB of one size as float32 [n, 3, h, w] in [-1, 1]."""
    array = np.stack(list(images))
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(f"expected uint8 [n, h, w, 3], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1.0
