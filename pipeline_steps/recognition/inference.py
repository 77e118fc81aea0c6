"""Embeddings of benchmark images by a backbone, and its accuracy on a benchmark."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.faces import recogniser
from pipeline_steps.recognition.protocol import (
    N_FOLDS,
    Verification,
    combine_flips,
    pair_distances,
    verify_pairs,
)

# Images per pass: on CPUs those whose feature maps stay in the cache, on GPUs those that fill it.
BATCH_SIZES = {"cpu": 16, "cuda": 256}


def to_input(images: Tensor, input_size: int) -> Tensor:
    """uint8 RGB [n, h, w, 3] -> float32 [n, 3, input_size, input_size] in [-1, 1].

    Larger images are shrunk by area averages.

    Raises:
        ValueError: another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"expected uint8 [n, h, w, 3], got {images.dtype} {tuple(images.shape)}")
    x = recogniser.to_input(images)
    if x.shape[2:] != (input_size, input_size):
        x = functional.interpolate(x, size=(input_size, input_size), mode="area")
    return x


@torch.inference_mode()
def embed_both_ways(
    network: nn.Module, images: np.ndarray, *, input_size: int, batch_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Raw embeddings of images and of their mirror images.

    Args:
        network: backbone; evaluated in evaluation mode, its mode is restored afterwards.
        images: uint8 [n, h, w, 3], RGB.
        input_size: what the backbone expects.
        batch_size: images per pass; None: what suits the device.

    Returns:
        two float32 [n, embedding_dim].
    """
    device = next(network.parameters()).device
    batch_size = batch_size or BATCH_SIZES[device.type]
    was_training = network.training
    network.eval()
    try:
        plain: list[Tensor] = []
        mirrored: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).to(device)
            x = to_input(batch, input_size).contiguous(memory_format=torch.channels_last)
            plain.append(network(x).float())
            mirrored.append(network(x.flip(3)).float())
    finally:
        network.train(was_training)
    return torch.cat(plain).cpu().numpy(), torch.cat(mirrored).cpu().numpy()


def embed_with_flip(
    network: nn.Module, images: np.ndarray, *, input_size: int, batch_size: int | None = None
) -> np.ndarray:
    """Unit embeddings of image plus mirror image, float64 [n, embedding_dim].

    Arguments as of :func:`embed_both_ways`.
    """
    both = embed_both_ways(network, images, input_size=input_size, batch_size=batch_size)
    return combine_flips(*both)


def verify_benchmark(
    network: nn.Module,
    images: np.ndarray,
    same: np.ndarray,
    *,
    input_size: int,
    n_folds: int = N_FOLDS,
) -> Verification:
    """Accuracy of a backbone on one benchmark (images [2n, h, w, 3] uint8 RGB, same bool [n])."""
    embeddings = embed_with_flip(network, images, input_size=input_size)
    return verify_pairs(pair_distances(embeddings), same, n_folds)
