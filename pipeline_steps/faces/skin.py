"""Skin tone of aligned faces: the Individual Typology Angle.

ITA = atan((L* - 50) / b*) in degrees, of CIELAB under D65; light skin has large angles. Source:
Chardon, Cretois and Hourseau, "Skin colour typology and suntanning pathways", International Journal
of Cosmetic Science 13, 1991; its six classes as in Del Bino and Bernerd, "Variations in skin colour
and the biological consequences of ultraviolet radiation exposure", British Journal of Dermatology
169, 2013.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Forehead and both cheeks on the 112x112 template: rows, columns.
REGIONS = (
    (slice(24, 38), slice(42, 70)),
    (slice(64, 82), slice(26, 42)),
    (slice(64, 82), slice(70, 86)),
)
CLASSES = (  # lower limit of the angle in degrees, from light to dark
    (55.0, "very light"),
    (41.0, "light"),
    (28.0, "intermediate"),
    (10.0, "tan"),
    (-30.0, "brown"),
    (-90.0, "dark"),
)
LEAST_YELLOW = 1e-6  # b* of light that is bluer than any skin: the angle is then 90 or -90


def typology_angles(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """ITA of aligned faces in degrees, [-90, 90].

    Medians of L* and b* over forehead and cheeks, each by itself; the angle in the middle of the
    three is the face's, so that hair, a shadow or a cheek turned away is outvoted.

    Args:
        images: uint8 [n, 112, 112, 3] RGB, on the ArcFace template.

    Returns:
        float32 [n].
    """
    scaled = images.astype(np.float32) / 255
    lab = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in scaled])
    colours = np.stack(
        [np.median(lab[:, rows, columns], axis=(1, 2)) for rows, columns in REGIONS], axis=1
    )
    lightness, yellow = colours[..., 0] - 50.0, np.maximum(colours[..., 2], LEAST_YELLOW)
    return np.median(np.degrees(np.arctan(lightness / yellow)), axis=1).astype(np.float32)


def skin_class(angle: float) -> str:
    """One of the six classes of an angle in degrees."""
    return next((name for limit, name in CLASSES if angle > limit), CLASSES[-1][1])
