"""The guide: the recogniser inside the losses, with gradients by the image alone.

Source: ID-Booth, Eq. 7 and 8: the largest box of MTCNN on the clamped decoded image, stretched to
the recogniser's input. With frozen weights, batch normalisation after a convolution is part of the
convolution, and PReLU's derivative by its slope is of no use; both otherwise take a third of the
network's time on a CPU.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline_steps.diffusion.base_models.base import to_signed
from pipeline_steps.faces.detection import Detector, crop_and_resize
from pipeline_steps.faces.iresnet import IResidualBlock, IResNet
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.io.weights import Weights


class Guide(Protocol):
    """Finds the largest face of images and embeds face regions."""

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        """Largest box (x1, y1, x2, y2), in pixels, of each of uint8 [n, 3, h, w]; None: no face."""

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Embeddings [n, d] of the boxes [n, 4] of images [n, 3, h, w] in [-1, 1]."""


class FaceGuide:
    """MTCNN, the differentiable crop, and a recogniser."""

    def __init__(self, detector: Detector, recogniser: Recogniser) -> None:
        self._detector = detector
        self._network = frozen_copy(recogniser.network)

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        found = self._detector.detect_tensor(images)
        return [None if face is None else face.box for face in found]

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self._network(crop_and_resize(images, boxes, self._network.input_size))


def load_guide(weights: Weights, device: str, min_face_size: int) -> FaceGuide:
    """The guide of a registry entry, which looks for faces of at least so many pixels.

    Raises:
        StepError: the recogniser's weights are missing or unfit.
    """
    return FaceGuide(Detector(device, min_face_size), load_recogniser(weights, device))


def embed_largest(guide: Guide, images: Tensor) -> list[tuple[NDArray[np.float32], Tensor] | None]:
    """Box and embedding of each image's largest face; None for an image without one.

    Args:
        guide: Detector and recogniser.
        images: uint8 [n, 3, h, w] on their device.

    Returns:
        Boxes (x1, y1, x2, y2) in pixels; embeddings float32 [d] on the CPU, not normalised.
    """
    boxes = guide.boxes(images)
    found = {i: box for i, box in enumerate(boxes) if box is not None}
    if not found:
        return [None] * len(images)
    regions = torch.from_numpy(np.stack(list(found.values()))).to(images.device)
    with torch.no_grad():
        rows = guide.embed(to_signed(images[list(found)]), regions).float().cpu()
    embeddings = dict(zip(found, rows, strict=True))
    return [None if box is None else (box, embeddings[i]) for i, box in enumerate(boxes)]


def frozen_copy(network: IResNet) -> IResNet:
    """A copy in evaluation mode that computes the same embeddings up to float rounding."""
    frozen: Any = copy.deepcopy(network)
    frozen.eval().requires_grad_(False)
    frozen.conv1, frozen.bn1 = _fused(frozen.conv1, frozen.bn1)
    for block in frozen.modules():
        if isinstance(block, IResidualBlock):
            _fuse_block(block)
    for parent in list(frozen.modules()):
        if isinstance(getattr(parent, "prelu", None), nn.PReLU):
            parent.prelu = FrozenPReLU(parent.prelu)
    result: IResNet = frozen.requires_grad_(False).to(memory_format=torch.channels_last)
    return result


def _fuse_block(block: Any) -> None:
    block.conv1, block.bn2 = _fused(block.conv1, block.bn2)
    block.conv2, block.bn3 = _fused(block.conv2, block.bn3)
    if block.downsample is not None:
        block.downsample = nn.Sequential(*_fused(*block.downsample))


class FrozenPReLU(nn.Module):
    """PReLU without a gradient of its slopes."""

    slope: Tensor

    def __init__(self, layer: nn.PReLU) -> None:
        super().__init__()
        self.register_buffer("slope", layer.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, ...] -> the same shape."""
        result: Tensor = _PReLU.apply(x, self.slope)
        return result


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope.to(x.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        scaled = gradient * slope.to(gradient.dtype).view(-1, *([1] * (x.ndim - 2)))
        return torch.where(x > 0, gradient, scaled), None


def _fused(convolution: Any, normalisation: Any) -> tuple[Any, Any]:
    return fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
