"""Where a face stands in an image, and how it is cut out: warped to a template, or as a square.

Landmarks are five points in pixels, x then y, in the order left eye, right eye, nose tip, left
mouth corner, right mouth corner; left and right as seen in the image. The centre of the top-left
pixel is (0, 0), as in OpenCV and scikit-image.

Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
TPAMI 1991, without reflections; the template is ArcFace's (Deng et al., CVPR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    """The [2, 3] similarity from an image with landmarks [5, 2] to its aligned crop of that side.

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


@dataclass(frozen=True)
class Square:
    """A square region inside an image: left and top edge and side, in pixels, may be fractions."""

    left: float
    top: float
    side: float

    @classmethod
    def about_face(
        cls, box: NDArray[np.floating], height: int, width: int, margin: float
    ) -> Square:
        """The square about a face that shows margin times its size and stays inside the image.

        Where it would reach over the border it is moved, and where it does not fit it is shrunk, so
        that no invented border gets into the picture.

        Args:
            box: [4] x1, y1, x2, y2 of the face in pixels.
            height, width: of the image in pixels.
            margin: side of the square over the longer side of the box.
        """
        x1, y1, x2, y2 = (float(value) for value in box)
        side = min(margin * max(x2 - x1, y2 - y1), float(height), float(width))
        # The box counts from the first pixel's centre, the square from its edge.
        left = min(max((x1 + x2 + 1 - side) / 2, 0.0), width - side)
        top = min(max((y1 + y2 + 1 - side) / 2, 0.0), height - side)
        return cls(left, top, side)

    def cut(self, image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The region of uint8 [h, w, 3] as uint8 [size, size, 3], antialiased (Lanczos)."""
        edges = (self.left, self.top, self.left + self.side, self.top + self.side)
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=edges)
        return np.asarray(resized, dtype=np.uint8)

    def points(self, points: NDArray[np.floating], size: int) -> NDArray[np.float64]:
        """Points [..., 2] of the image in the pixels of what `cut` gives.

        The centre of a pixel is a whole number on both sides, its edges are half a pixel away.
        """
        corner = np.array([self.left, self.top])
        scaled = (np.asarray(points, dtype=np.float64) + 0.5 - corner) * (size / self.side)
        return np.asarray(scaled - 0.5)


def shrunk(image: NDArray[np.uint8], longer_side: int) -> tuple[NDArray[np.uint8], float, float]:
    """The image reduced so that its longer side is at most `longer_side` pixels.

    Returns:
        the image, and by which factors x and y were multiplied (1 where it was small enough).
    """
    height, width = image.shape[:2]
    factor = longer_side / max(height, width)
    if factor >= 1:
        return image, 1.0, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.uint8), size[0] / width, size[1] / height


def unshrunk(points: NDArray[np.floating], across: float, down: float) -> NDArray[np.float64]:
    """Points [..., 2] of a shrunk image in the pixels of the original."""
    factors = np.array([across, down])
    return np.asarray((np.asarray(points, dtype=np.float64) + 0.5) / factors - 0.5)
