"""How near generated images come to the photographs of the person whom they are meant to show.

Source: "Fusion is all you need: Face Fusion for customized identity-preserving image synthesis",
Section 4.2: cosine distance of face embeddings, PSNR and SSIM of the face region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import feature_matrix, rows_of, same_width, unit_rows


def reference_distance(
    images: ArrayLike,
    owners: Sequence[str],
    photographs: ArrayLike,
    photograph_owners: Sequence[str],
) -> float:
    """Mean cosine distance of images to the mean embedding of their person's photographs.

    Args:
        images: embeddings [n, d] of any length.
        owners: whom each is meant to show.
        photographs: embeddings [m, d] by the same recogniser.
        photograph_owners: whom each shows.

    Returns:
        In [0, 2], 0 for the photographs' own mean; NaN where nobody has both.

    Raises:
        ValueError: embeddings of different recognisers, or not finite.
    """
    rows = feature_matrix(images, name="image")
    others = feature_matrix(photographs, name="photograph")
    same_width(others, rows)
    images_of, theirs = rows_of(owners), rows_of(photograph_owners)
    rows, others = unit_rows(rows, name="image"), unit_rows(others, name="photograph")
    found = [np.empty(0)]
    for name in (name for name in images_of if name in theirs):
        mean = others[theirs[name]].mean(axis=0, keepdims=True)
        found.append(1.0 - rows[images_of[name]] @ unit_rows(mean, name="mean")[0])
    distances = np.concatenate(found)
    return float(distances.mean()) if len(distances) else float("nan")


class Fidelity(NamedTuple):
    """How well an image agrees with another one: PSNR in dB (infinite: equal), SSIM in [-1, 1]."""

    psnr: float
    ssim: float


def fidelity(image: NDArray[np.uint8], photographs: NDArray[np.uint8]) -> Fidelity:
    """PSNR and SSIM of an aligned face against the closest photograph, that of the highest PSNR.

    Args:
        image: uint8 [h, w, 3].
        photographs: uint8 [n, h, w, 3], n >= 1.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    errors = np.square(photographs.astype(np.float32) - image).mean(axis=(1, 2, 3))
    closest = photographs[int(errors.argmin())]
    same = bool((closest == image).all())
    return Fidelity(
        float("inf") if same else float(peak_signal_noise_ratio(closest, image, data_range=255)),
        float(structural_similarity(closest, image, channel_axis=2, data_range=255)),
    )
