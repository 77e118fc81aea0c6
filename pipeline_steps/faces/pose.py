"""Head pose: of five landmarks, or of the picture of a face by 6DRepNet.

Of landmarks: the perspective-n-point problem on an average head that may smile. Source: a first
solution by Terzakis & Lourakis, "A consistently fast and globally optimal solution to the
perspective-n-point problem", ECCV 2020 (`cv2.SOLVEPNP_SQPNP`), refined by Gauss-Newton steps in
which the mouth may move and widen. On a rigid head a smile, which shortens the face and widens the
mouth, would pass for a head bowed by tens of degrees.

Signs, as seen in the image (x to the right, y down): **yaw** > 0 turns the nose to the image's
right, **pitch** > 0 lifts it, **roll** > 0 turns the head clockwise. A face whose landmarks stand
on the ArcFace template has pose (0, 0, 0), up to the template's own slight asymmetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE, TEMPLATE_SIZE

EXTRACTOR = "solvePnP on five landmarks, refined with a mouth that may move"

EYE_DISTANCE_MM = 63.0
"""Mean distance of adults' pupils (Dodgson, 2004)."""

_DEPTH_MM = np.array([0.0, 0.0, 37.0, 5.0, 5.0])
"""How far nose tip and mouth corners stand before the pupils in an average head."""

FOCAL_LENGTHS_PER_SIDE = 4.0
"""Focal length over image side: a face that fills two thirds of it is seen from about a metre."""

LANDMARK_SD_MM = 1.5
MOUTH_HEIGHT_SD_MM = 8.0
MOUTH_WIDTH_SD_MM = 5.0
"""How far landmarks are off, and how far mouth corners move up or down, and outwards (each)."""

N_PARAMETERS = 8
"""Pitch, yaw, roll in radians; x, y, z of the head and how far the mouth corners moved down and
outwards in millimetres."""

GAUSS_NEWTON_STEPS = 200  # at most; heads that are bowed deeply take dozens
CONVERGED = 1e-9  # largest last step, in radians and millimetres
_DIFFERENCE = 1e-5  # step of the numerical derivative, in radians and millimetres


def _head_model() -> NDArray[np.float64]:
    """[5, 3] landmarks in millimetres: x right, y down, z away from the camera.

    Seen by the assumed portrait lens, they come to stand on the template, made symmetric about
    x = 0: the template's face is a frontal one.
    """
    template = ARCFACE_TEMPLATE - ARCFACE_TEMPLATE[:2].mean(axis=0)
    template = (template + template[[1, 0, 2, 4, 3]] * [-1.0, 1.0]) / 2.0
    focal = FOCAL_LENGTHS_PER_SIDE * TEMPLATE_SIZE
    distance = focal * EYE_DISTANCE_MM / (template[1, 0] - template[0, 0])
    # What stands nearer is smaller than it looks.
    planar = template * ((distance - _DEPTH_MM) / focal)[:, None]
    return np.column_stack([planar, -_DEPTH_MM])


HEAD_MODEL: NDArray[np.float64] = _head_model()


def rotation_from_pose(pitch: ArrayLike, yaw: ArrayLike, roll: ArrayLike) -> NDArray[np.float64]:
    """Rotations [..., 3, 3] of the head (x right, y down, z away) for angles [...] in degrees.

    The head pitches first, then yaws, then rolls: R = R_z(roll) R_y(-yaw) R_x(-pitch), written with
    rotations that are right-handed in these axes.
    """
    a, b, c = (np.radians(np.asarray(angle)) for angle in (pitch, yaw, roll))
    zero, one = np.zeros_like(a), np.ones_like(a)
    rx = [[one, zero, zero], [zero, np.cos(a), np.sin(a)], [zero, -np.sin(a), np.cos(a)]]
    ry = [[np.cos(b), zero, -np.sin(b)], [zero, one, zero], [np.sin(b), zero, np.cos(b)]]
    rz = [[np.cos(c), -np.sin(c), zero], [np.sin(c), np.cos(c), zero], [zero, zero, one]]
    x, y, z = (np.moveaxis(np.array(matrix), (0, 1), (-2, -1)) for matrix in (rx, ry, rz))
    return np.asarray(z @ y @ x)


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
        float64 [n, 3]: pitch, yaw, roll in degrees; NaN where a landmark is not finite.

    Raises:
        ValueError: landmarks are not [n, 5, 2].
    """
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"expected landmarks [n, 5, 2], got {landmarks.shape}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    focal = focal_length or FOCAL_LENGTHS_PER_SIDE * max(height, width)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    rays = (landmarks - camera[:2, 2]) / focal
    parameters = np.full((len(landmarks), N_PARAMETERS), np.nan)
    for row, points in enumerate(landmarks):
        if not np.isfinite(points).all():
            continue
        found, axis, shift = cv2.solvePnP(
            HEAD_MODEL, points, camera, None, flags=cv2.SOLVEPNP_SQPNP
        )
        if found and shift[2, 0] > 0:
            angles = pose_from_rotation(np.asarray(cv2.Rodrigues(axis)[0]))
            parameters[row] = [*np.radians(angles), *np.ravel(shift), 0.0, 0.0]
        else:  # landmarks that fit no head before the camera: start from a frontal one
            distance = EYE_DISTANCE_MM / max(
                float(np.linalg.norm(rays[row, 1] - rays[row, 0])), 1e-3
            )
            centre = rays[row, :2].mean(axis=0) * distance
            parameters[row] = [0.0, 0.0, 0.0, *centre, distance, 0.0, 0.0]
    posed = np.isfinite(parameters).all(axis=1)
    parameters[posed] = _refined(parameters[posed], rays[posed])
    return np.degrees(parameters[:, :3])


def _residuals(parameters: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a pose leaves unexplained, in standard deviations: [n, 12] for n faces."""
    model = np.repeat(HEAD_MODEL[None], len(parameters), axis=0)
    model[:, 3:, 1] += parameters[:, 6:7]
    model[:, 3:, 0] += parameters[:, 7:8] * [-1.0, 1.0]
    rotations = rotation_from_pose(*np.degrees(parameters[:, :3]).T)
    points = np.einsum("nij,npj->npi", rotations, model) + parameters[:, None, 3:6]
    # Compared at the head's distance, so that the unit is the millimetre.
    off = (points[:, :, :2] / points[:, :, 2:] - rays) * parameters[:, None, 5:6]
    mouth = parameters[:, 6:] / [MOUTH_HEIGHT_SD_MM, MOUTH_WIDTH_SD_MM]
    return np.concatenate([off.reshape(len(off), 10) / LANDMARK_SD_MM, mouth], axis=1)


def _refined(parameters: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most probable parameters [n, 8] near the given ones, for landmarks as rays [n, 5, 2].

    Where the steps leave the range of heads that show a face, the given ones are kept.
    """
    first, parameters = parameters, parameters.copy()
    damping = 1e-6 * np.eye(N_PARAMETERS)
    moving = np.arange(len(parameters))  # each face by itself: no face waits for another
    for _ in range(GAUSS_NEWTON_STEPS):
        here, seen = parameters[moving], rays[moving]
        slopes = np.stack(
            [
                (_residuals(here + axis, seen) - _residuals(here - axis, seen)) / (2 * _DIFFERENCE)
                for axis in _DIFFERENCE * np.eye(N_PARAMETERS)
            ],
            axis=2,
        )
        normal = np.einsum("nri,nrj->nij", slopes, slopes) + damping
        gradient = np.einsum("nri,nr->ni", slopes, _residuals(here, seen))
        step = np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
        # Radians; a long step may turn the head round.
        step[:, :3] = np.clip(step[:, :3], -0.3, 0.3)
        parameters[moving] -= step
        moving = moving[np.abs(step).max(axis=1) > CONVERGED]
        if len(moving) == 0:
            break
    sane = np.abs(parameters[:, :3]).max(axis=1, initial=0.0) <= np.pi / 2
    return np.where(sane[:, None], parameters, first)


# 6DRepNet. Source: Hempel et al., "6D rotation representation for unconstrained head pose
# estimation", ICIP 2022: a RepVGG-B1g2 (Ding et al., CVPR 2021) in its inference form, one
# convolution with bias for each block, and a linear layer to the first two columns of a rotation
# matrix. Parameter names are those of the published weights.

N_BLOCKS = (4, 6, 16, 1)
WIDTHS = (64, 128, 256, 512, 2048)
SIXDREPNET_SIDE = 224
SIXDREPNET_BORDER = 30
"""Black pixels about an aligned 112-pixel face: the network was trained on looser crops."""


class RepVggBlock(nn.Module):
    """A 3x3 convolution and a rectifier."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.rbr_reparam = nn.Conv2d(
            inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        return F.relu(self.rbr_reparam(x))


class SixDRepNet(nn.Module):
    """Image -> rotation of the head.

    Args:
        widths: channels of the stem and of the four stages.
        n_blocks: blocks of the four stages.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, n_blocks: Sequence[int] = N_BLOCKS) -> None:
        super().__init__()
        self.layer0 = RepVggBlock(3, widths[0], stride=2, groups=1)
        index = count(1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                *(
                    RepVggBlock(
                        outputs if block else inputs,
                        outputs,
                        stride=1 if block else 2,
                        groups=1 if next(index) % 2 else 2,  # every other one of the "g2" family
                    )
                    for block in range(blocks)
                )
            )
            for inputs, outputs, blocks in zip(widths[:-1], widths[1:], n_blocks, strict=True)
        )
        self.linear_reg = nn.Linear(widths[-1], 6)

    def forward(self, x: Tensor) -> Tensor:
        """Rotations [n, 3, 3] of images [n, 3, 224, 224] with ImageNet's mean and deviation."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return rotation_of(self.linear_reg(x.mean(dim=(2, 3))))


def rotation_of(columns: Tensor) -> Tensor:
    """Rotation matrices [n, 3, 3] from two raw columns [n, 6], by Gram-Schmidt (Zhou et al. 2019).

    The first three numbers are the first column, the last three about the second.
    """
    first = F.normalize(columns[:, :3], eps=1e-8)
    third = F.normalize(torch.linalg.cross(first, columns[:, 3:]), eps=1e-8)
    return torch.stack([first, torch.linalg.cross(third, first), third], dim=2)


def pose_of(rotation: Tensor) -> Tensor:
    """Pitch, yaw and roll [n, 3] in degrees, with the signs of `pose`, from rotations [n, 3, 3].

    6DRepNet counts yaw the other way round: its drawn axis goes left in the image for yaw > 0.
    """
    pitch = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    yaw = torch.atan2(rotation[:, 2, 0], torch.hypot(rotation[:, 0, 0], rotation[:, 1, 0]))
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.rad2deg(torch.stack([pitch, yaw, roll], dim=1))
