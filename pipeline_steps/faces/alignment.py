"""Alignment of a face to the template that face recognisers are trained on.

Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
TPAMI 1991, without reflections; the template is ArcFace's (Deng et al., CVPR 2019).

Landmarks are five points in pixels, x then y, in the order left eye, right eye, nose tip, left
mouth corner, right mouth corner; left and right as seen in the image. The centre of the top-left
pixel is (0, 0), as in OpenCV and scikit-image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

TEMPLATE_SIZE = 112
"""Side of the image in which the template's points are given, in pixels."""

ARCFACE_TEMPLATE: NDArray[np.float64] = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Where the five landmarks of a 112x112 image stand, in pixels."""


def similarity_transform(
    source: NDArray[np.floating], target: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Rotation, uniform scale and translation that bring points closest to their targets.

    Args:
        source: [n, 2] points, n >= 2.
        target: [n, 2] where they should come to stand.

    Returns:
        [2, 3] matrix M with target ~ M[:, :2] @ source + M[:, 2]; minimises the sum of squared
        distances over all similarities without reflection (Umeyama 1991, Eqs. 39 to 43).

    Raises:
        ValueError: shapes differ or are not [n, 2], a coordinate is not finite, or all source
            points coincide.
    """
    source = np.asarray(source, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(
            f"expected two equal arrays of [n, 2] points, got {source.shape} and {target.shape}"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("points must be finite numbers")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    variance = np.mean(np.sum(centred**2, axis=1))
    if variance <= 1e-12:
        raise ValueError("all source points coincide: no similarity transform is defined")
    covariance = (target - target_mean).T @ centred / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(sign) @ vt
    scale = float(singular @ sign) / variance
    matrix = np.empty((2, 3))
    matrix[:, :2] = scale * rotation
    matrix[:, 2] = target_mean - matrix[:, :2] @ source_mean
    return matrix


def transform_points(
    matrix: NDArray[np.floating], points: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Apply a [2, 3] affine matrix to points [..., 2], both in pixels."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def template_transform(
    landmarks: NDArray[np.floating], size: int = TEMPLATE_SIZE
) -> NDArray[np.float64]:
    """The [2, 3] similarity from an image to its aligned crop of side `size` pixels.

    Args:
        landmarks: [5, 2] in the image's pixels.
        size: side of the aligned crop in pixels; the template is scaled to it.

    Raises:
        ValueError: as `similarity_transform`.
    """
    return similarity_transform(landmarks, ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE))


def align_to_template(
    image: NDArray[np.uint8], landmarks: NDArray[np.floating], size: int = TEMPLATE_SIZE
) -> NDArray[np.uint8]:
    """Warp a face so that its landmarks come to stand on the ArcFace template.

    Interpolation is bilinear without antialiasing and what lies outside the image is black
    (`cv2.warpAffine`), which is how recognisers' training images were made.

    Args:
        image: [h, w, 3] uint8 RGB.
        landmarks: [5, 2] in the image's pixels.
        size: side of the result in pixels.

    Returns:
        [size, size, 3] uint8 RGB.

    Raises:
        ValueError: the image is not uint8 [h, w, 3], or as `similarity_transform`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [h, w, 3], got {image.dtype} {image.shape}")
    warped = cv2.warpAffine(
        image,
        template_transform(landmarks, size),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0),
    )
    return np.asarray(warped, dtype=np.uint8)
