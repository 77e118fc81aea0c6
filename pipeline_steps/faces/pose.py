"""Head pose from five landmarks: the perspective-n-point problem on an average head.

Source: Terzakis & Lourakis, "A consistently fast and globally optimal solution to the
perspective-n-point problem", ECCV 2020 (`cv2.SOLVEPNP_SQPNP`).

Signs, as seen in the image (x to the right, y down): **yaw** > 0 turns the nose to the image's
right, **pitch** > 0 lifts it, **roll** > 0 turns the head clockwise. A face whose landmarks stand
on the ArcFace template has pose (0, 0, 0), up to the template's own slight asymmetry.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE

EXTRACTOR = "solvePnP on five landmarks"

EYE_DISTANCE_MM = 63.0
"""Mean distance of adults' pupils (Dodgson, 2004)."""

_DEPTH_MM = np.array([0.0, 0.0, 37.0, 5.0, 5.0])
"""How far nose tip and mouth corners stand before the pupils in an average head."""

FOCAL_LENGTHS_PER_SIDE = 4.0
"""Focal length over image side: a face that fills two thirds of it is seen from about a metre."""


def _head_model() -> NDArray[np.float64]:
    """[5, 3] landmarks in millimetres: x right, y down, z away from the camera.

    Across and down they follow the template, symmetric about x = 0, so that the template's face is
    a frontal one.
    """
    template = ARCFACE_TEMPLATE - ARCFACE_TEMPLATE[:2].mean(axis=0)
    mirrored = template[[1, 0, 2, 4, 3]] * [-1.0, 1.0]
    planar = (template + mirrored) / 2.0
    planar *= EYE_DISTANCE_MM / (planar[1, 0] - planar[0, 0])
    return np.column_stack([planar, -_DEPTH_MM])


HEAD_MODEL: NDArray[np.float64] = _head_model()


def rotation_from_pose(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """Rotation [3, 3] of the head (x right, y down, z away) for angles in degrees.

    The head pitches first, then yaws, then rolls: R = R_z(roll) R_y(-yaw) R_x(-pitch), written with
    rotations that are right-handed in these axes.
    """
    a, b, c = np.radians([-pitch, -yaw, roll])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def pose_from_rotation(rotation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Inverse of `rotation_from_pose`: [3, 3] -> pitch, yaw, roll in degrees, |yaw| <= 90."""
    yaw = np.arcsin(np.clip(rotation[2, 0], -1.0, 1.0))
    pitch = -np.arctan2(rotation[2, 1], rotation[2, 2])
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.degrees(np.array([pitch, yaw, roll]))


def head_pose(
    landmarks: NDArray[np.floating],
    image_size: int | tuple[int, int],
    *,
    focal_length: float | None = None,
) -> NDArray[np.float64]:
    """Pitch, yaw and roll of heads.

    Args:
        landmarks: [n, 5, 2] in pixels, order as in `alignment`.
        image_size: (height, width) of the images in pixels, or the side of a square.
        focal_length: in pixels; default four times the longer side, a portrait lens.

    Returns:
        float64 [n, 3]: pitch, yaw, roll in degrees; NaN where no pose was found.

    Raises:
        ValueError: landmarks are not [n, 5, 2].
    """
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"expected landmarks [n, 5, 2], got {landmarks.shape}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    focal = focal_length or FOCAL_LENGTHS_PER_SIDE * max(height, width)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    poses = np.full((len(landmarks), 3), np.nan)
    for row, points in enumerate(landmarks):
        if not np.isfinite(points).all():
            continue
        found, axis, _ = cv2.solvePnP(HEAD_MODEL, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if found:
            poses[row] = pose_from_rotation(np.asarray(cv2.Rodrigues(axis)[0]))
    return poses
