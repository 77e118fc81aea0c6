"""The guide: the recogniser inside losses and guidance, with gradients by the image alone.

Source: ID-Booth, Eq. 7 and 8: the largest box of MTCNN on the clamped decoded image, stretched to
the recogniser's input. With frozen weights, batch normalisation after a convolution is part of the
convolution, and PReLU's derivative by its slope is of no use; both otherwise take a third of the
network's time on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline_steps.diffusion.base_models.base import to_signed, to_uint8
from pipeline_steps.faces.detection import Detection, Detector, crop_and_resize
from pipeline_steps.faces.iresnet import IResidualBlock, IResNet
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.io.tensors import send
from pipeline_steps.io.weights import Weights

Term = Callable[[Tensor, Tensor, Tensor, float], Tensor]


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

    def faces(self, images: Tensor) -> list[Detection | None]:
        """Largest face of each of uint8 [n, 3, h, w]."""
        return self._detector.detect_tensor(images)

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        return [None if face is None else face.box for face in self.faces(images)]

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


@dataclass(frozen=True)
class IdentityTerm:
    """The identity term of n samples.

    Attributes:
        values: Unweighted losses, float [n]; 0 where no face was found.
        gradient: d(sum of weight * value) / d(latents), float like the latents.
        found: Where a face was found, bool [n].
    """

    values: Tensor
    gradient: Tensor
    found: Tensor


def identity_term(
    latents: Tensor,
    *,
    term: Term,
    decode: Callable[[Tensor], Tensor],
    guide: Guide,
    positives: Tensor,
    negatives: Tensor,
    margin: float,
    weights: Tensor,
    chunk: int,
    redecode: bool = False,
) -> IdentityTerm:
    """Evaluate an identity term on estimated clean latents, for all identities at once.

    Computing dL/dz_0 here, apart from the denoising network's graph, lets the autoencoder run in
    small pieces and skip those without a face; both exact.

    Args:
        latents: Estimates of z_0, float [n, c, h, w]; their graph is not followed.
        term: (anchor, positive, negative, margin) -> losses [n], of the method.
        decode: Latents -> images [n, 3, H, W] about [-1, 1], differentiable.
        guide: Detector and recogniser.
        positives: Embeddings of the samples' training images, [n, d] on the CPU. A sample whose
            training image has none (NaN) counts as one without a face.
        negatives: Embeddings of the prior images of the same step, [n, d] on the CPU.
        margin: Of the triplet loss; passed on.
        weights: Factor of each sample's loss in the gradient, float [n].
        chunk: Samples decoded together.
    """
    leaf = latents.detach().requires_grad_()
    # One graph per piece, so that a piece without a face is dropped without a backward pass.
    parts = leaf.split(chunk)
    with torch.set_grad_enabled(not redecode):
        pieces: list[Tensor | None] = [decode(part).clamp(-1.0, 1.0) for part in parts]
    # One detection, and one wait for the device, for the whole fleet.
    boxes = guide.boxes(torch.cat([to_uint8(piece) for piece in pieces if piece is not None]))
    known = positives.isfinite().all(dim=1).tolist()
    boxes = [box if has else None for box, has in zip(boxes, known, strict=True)]
    values = latents.new_zeros(len(latents))
    for i, part in enumerate(parts):
        start = i * chunk
        rows = [start + j for j in range(len(part)) if boxes[start + j] is not None]
        piece, pieces[i] = pieces[i], None  # its graph is freed after its backward pass
        if not rows or piece is None:
            continue
        if redecode:
            piece = decode(part).clamp(-1.0, 1.0)
        where = send(torch.tensor(rows), latents.device)
        found_boxes = torch.from_numpy(np.stack([boxes[row] for row in rows]))  # type: ignore[misc]
        anchors = guide.embed(piece[where - start], send(found_boxes, latents.device))
        # Cosines of unit vectors in 16 bits are off by 0.004.
        anchors = anchors.to(torch.promote_types(anchors.dtype, torch.float32))
        losses = term(
            anchors,
            send(positives[rows], anchors.device).to(anchors.dtype),
            send(negatives[rows], anchors.device).to(anchors.dtype),
            margin,
        )
        (losses * weights[where].to(losses.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        values[where] = losses.detach().to(values.dtype)
    gradient = torch.zeros_like(latents) if leaf.grad is None else leaf.grad
    found = torch.tensor([box is not None for box in boxes])
    return IdentityTerm(values, gradient, send(found, latents.device))


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
