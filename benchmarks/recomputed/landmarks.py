"""What follows from five landmarks: the cut of an aligned face, and a head pose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import least_squares

Array = np.ndarray[Any, Any]
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)


def similarity(source: Array, target: Array) -> tuple[complex, complex]:
    """Least-squares a, b with target ~ a source + b; points [n, 2] are complex numbers here."""
    z, w = source @ [1, 1j], target @ [1, 1j]
    (a, b), *_ = np.linalg.lstsq(np.stack([z, np.ones(len(z))], axis=1), w, rcond=None)
    return a, b


def landmark_pose(landmarks: Array, focal_per_side: float) -> list[float]:
    """Pitch, yaw, roll in degrees from five points [5, 2] of the source image.

    The points are moved into the aligned face. There the pose is sought, with a mouth that may move
    (by 8 mm down or up, 5 mm outwards) and points that are 1.5 mm off, all standard deviations: the
    minimum of the sum of squares, by scipy's trust region instead of the project's own steps.
    """
    a, b = similarity(landmarks, TEMPLATE)
    moved = a * (landmarks @ [1, 1j]) + b
    focal = focal_per_side * 112
    rays = np.stack([moved.real - 55.5, moved.imag - 55.5], axis=1) / focal
    template = TEMPLATE - TEMPLATE[:2].mean(axis=0)
    mirrored = template[[1, 0, 2, 4, 3]] * [-1, 1]
    template = (template + mirrored) / 2
    ahead = np.array([0.0, 0.0, 37.0, 5.0, 5.0])  # millimetres before the pupils
    reference = 4.0 * 112  # the lens by which the head is modelled
    away = reference * 63.0 / (template[1, 0] - template[0, 0])  # pupils 63 mm apart
    head = np.column_stack([template * ((away - ahead) / reference)[:, None], -ahead])

    def residuals(p: Array) -> Array:
        pitch, yaw, roll, x, y, z, down, outwards = p
        points = head.copy()
        points[3:, 1] += down
        points[3, 0] -= outwards
        points[4, 0] += outwards
        # right-handed about x right, y down, z away: pitch lifts the nose, yaw turns it right
        for axis, angle in ((0, -pitch), (1, -yaw), (2, roll)):
            i, j = [(1, 2), (2, 0), (0, 1)][axis]
            ci, cj = points[:, i].copy(), points[:, j].copy()
            points[:, i] = math.cos(angle) * ci - math.sin(angle) * cj
            points[:, j] = math.sin(angle) * ci + math.cos(angle) * cj
        points = points + np.array([x, y, z])
        off = (points[:, :2] / points[:, 2:] - rays) * z / 1.5
        return np.concatenate([off.ravel(), [down / 8.0, outwards / 5.0]])

    start = [0.0, 0.0, 0.0, 0.0, 0.0, focal * 63.0 / (template[1, 0] - template[0, 0]), 0.0, 0.0]
    best = min(
        (
            least_squares(residuals, [0.0, yaw, *start[2:]], xtol=1e-12, ftol=1e-12, gtol=1e-12)
            for yaw in (0.0, -0.7, 0.7)
        ),
        key=lambda found: found.cost,
    )
    return [math.degrees(angle) for angle in best.x[:3]]
