"""Near copies of photographs: how much two aligned faces agree pixel by pixel.

A recogniser calls two photographs of one person alike because it is the same person; a copy agrees
in its pixels too. Faces are compared by the normalised cross-correlation of band-passed brightness:
coarse light and fine noise are left out, so that compression, resizing and another exposure change
little, and small shifts and mirroring are searched.

The threshold comes from the photographs themselves, as in the nearest-neighbour ratio tests of
Carlini et al., "Extracting Training Data from Diffusion Models", USENIX Security 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Patches = NDArray[np.float32]

SIDE = 112  # aligned faces, pixels
REACH = 2  # largest shift searched, pixels
BORDER = 8  # pixels left out at each side: hair and background
FINE, COARSE = 1.0, 8.0  # standard deviations of the band-pass, pixels
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def band_passed(images: NDArray[np.uint8]) -> Patches:
    """Brightness [n, 112, 112] without coarsest and finest detail, of uint8 [n, 112, 112, 3] RGB.

    Raises:
        ValueError: another shape or type.
    """
    from scipy.ndimage import gaussian_filter

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(
            f"expected uint8 [n, {SIDE}, {SIDE}, 3], not {images.dtype} {images.shape}"
        )
    bright = images.astype(np.float32) @ LUMA
    fine, coarse = (gaussian_filter(bright, sigma, axes=(1, 2)) for sigma in (FINE, COARSE))
    return np.asarray(fine - coarse, np.float32)


def pixel_similarity(first: Patches, second: Patches) -> NDArray[np.float64]:
    """Largest normalised cross-correlation over small shifts and mirroring.

    Args:
        first, second: from :func:`band_passed`, [n, 112, 112] and [m, 112, 112].

    Returns:
        [n, m] in [-1, 1]; 0 where an image is flat.
    """
    probe, steps = _window(first, 0, 0), range(-REACH, REACH + 1)
    best = np.full((len(first), len(second)), -1.0)
    for pixels, down, right in product((second, second[:, :, ::-1]), steps, steps):
        np.maximum(best, probe @ _window(pixels, down, right).T, out=best)
    return np.clip(best, -1.0, 1.0)


def nearest_photographs(photographs: Patches, identities: Sequence[str]) -> NDArray[np.float64]:
    """Pixel similarity of each photograph to the closest other one of the same person.

    There is a value per photograph of a person who has two or more. The photographs are from
    :func:`band_passed`, [n, 112, 112], with one name each.
    """
    names = np.asarray(identities, dtype=str)
    found = [np.empty(0)]
    for name in np.unique(names):
        own = photographs[names == name]
        if len(own) > 1:
            similarity = pixel_similarity(own, own)
            np.fill_diagonal(similarity, -np.inf)
            found.append(similarity.max(axis=1))
    return np.concatenate(found)


def copy_threshold(nearest: NDArray[np.float64], ratio: float, quantile: float = 0.01) -> float:
    """Pixel similarity from which an image is a near copy of a photograph; NaN: none can be judged.

    1 - similarity is half the squared distance of the normalised images. A copy is closer to a
    photograph than `ratio` times the distance of two different photographs of one person that are
    as close as hardly any two are.

    Args:
        nearest: from :func:`nearest_photographs`.
        ratio: share of that distance, in (0, 1).
        quantile: share of the photographs whose neighbour may be closer still, so that a
            photograph that stands in the set twice does not switch the test off.
    """
    if len(nearest) == 0:
        return float("nan")
    return 1.0 - ratio * float(np.quantile(1.0 - nearest, quantile))


def _window(patches: Patches, down: int, right: int) -> Patches:
    """The middle of each image, shifted and halved, as a row of mean 0 and length 1 (flat: 0)."""
    low, high = BORDER, SIDE - BORDER
    part = patches[:, low + down : high + down, low + right : high + right]
    half = (high - low) // 2
    rows = part.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)).reshape(len(part), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-3)
