"""Identity embeddings of the face region of decoded images, with gradients.

Source: ID-Booth, Eq. 7 and 8: the largest box of MTCNN on the clamped decoded image, stretched to
the recogniser's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.faces.recogniser import Recogniser
    from pipeline_steps.io.weights import Weights


class FaceEmbedder(Protocol):
    """Finds the largest face of images and embeds face regions."""

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        """Largest box (x1, y1, x2, y2), in pixels, of each of uint8 [n, 3, h, w]; None: no face."""

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Embeddings [n, d] of the boxes [n, 4] of images [n, 3, h, w] in [-1, 1]."""


class FaceRegion:
    """MTCNN, the differentiable crop, and a recogniser."""

    def __init__(self, detector: Detector, recogniser: Recogniser) -> None:
        from pipeline_steps.diffusion.training.frozen_face_network import frozen_copy

        self._detector = detector
        self._network = frozen_copy(recogniser.network)

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        found = self._detector.detect_tensor(images)
        return [None if face is None else face.box for face in found]

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        from pipeline_steps.faces.detection import crop_and_resize

        crops = crop_and_resize(images, boxes, self._network.input_size)
        return self._network(crops)


def load_faces(weights: Weights, device: str, min_face_size: int) -> FaceRegion:
    """The detector and the recogniser of a registry entry.

    Raises:
        StepError: the recogniser's weights are missing or unfit.
    """
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.faces.recogniser import load_recogniser

    return FaceRegion(Detector(device, min_face_size), load_recogniser(weights, device))


def embed_largest(
    faces: FaceEmbedder, images: Tensor
) -> list[tuple[NDArray[np.float32], Tensor] | None]:
    """Box and embedding of each image's largest face; None for an image without one.

    Args:
        faces: Detector and recogniser.
        images: uint8 [n, 3, h, w] on their device.

    Returns:
        Boxes (x1, y1, x2, y2) in pixels; embeddings float32 [d] on the CPU, not normalised.
    """
    boxes = faces.boxes(images)
    found = {i: box for i, box in enumerate(boxes) if box is not None}
    if not found:
        return [None] * len(images)
    regions = torch.from_numpy(np.stack(list(found.values()))).to(images.device)
    with torch.no_grad():
        rows = faces.embed(to_signed(images[list(found)]), regions).float().cpu()
    embeddings = dict(zip(found, rows, strict=True))
    return [None if box is None else (box, embeddings[i]) for i, box in enumerate(boxes)]


def to_uint8(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] (clamped here) as uint8 of the same shape."""
    scaled = (images.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8)


def to_signed(images: Tensor) -> Tensor:
    """Images uint8 [n, 3, h, w] as float32 of the same shape in [-1, 1]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [n, 3, h, w], got {images.dtype} {list(images.shape)}")
    return images.float() / 127.5 - 1.0


def to_arrays(images: Tensor) -> NDArray[np.uint8]:
    """uint8 [n, 3, h, w] as a NumPy array [n, h, w, 3]."""
    array: NDArray[np.uint8] = images.permute(0, 2, 3, 1).cpu().numpy()
    return array
