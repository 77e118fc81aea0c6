"""The identity term of a step for all identities at once: its value and its gradient.

The estimate of the clean latents is decoded, faces are found, and where there is one the term flows
back through recogniser, crop and autoencoder. Computing dL/dz_0 here, apart from the denoising
network's graph, lets the autoencoder run in small pieces and skip those without a face; both exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline_steps.diffusion.training.face_region import FaceEmbedder, to_uint8
from pipeline_steps.io.tensors import send

Term = Callable[[Tensor, Tensor, Tensor, float], Tensor]


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
    faces: FaceEmbedder,
    positives: Tensor,
    negatives: Tensor,
    margin: float,
    weights: Tensor,
    chunk: int,
    redecode: bool = False,
) -> IdentityTerm:
    """Evaluate an identity term on estimated clean latents.

    Args:
        latents: Estimates of z_0, float [n, c, h, w]; their graph is not followed.
        term: (anchor, positive, negative, margin) -> losses [n], of the method.
        decode: Latents -> images [n, 3, H, W] about [-1, 1], differentiable.
        faces: Detector and recogniser.
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
    # One detection, and one wait for the device, for the whole cohort.
    boxes = faces.boxes(torch.cat([to_uint8(piece) for piece in pieces if piece is not None]))
    known = positives.isfinite().all(dim=1).tolist()
    boxes = [box if judged else None for box, judged in zip(boxes, known, strict=True)]
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
        anchors = faces.embed(piece[where - start], send(found_boxes, latents.device))
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
