"""Geometry of a photograph: the head's rotation, a pinhole camera, rays against simple bodies.

World coordinates: decimetres, x to the image's right, y up, z towards the camera, the head's centre
at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FACE_DEPTH = 0.80  # z of the plane at which the camera's width is measured, decimetres

Array = np.ndarray


def dot(a: Array, b: Array) -> Array:
    """Scalar products [...] along the last axis, of length 3.

    Much faster than a sum over so short an axis.
    """
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def unit(a: Array, least: float = 0.0) -> Array:
    """Vectors [..., 3] divided by their length, or by `least` where they are shorter."""
    return a / np.maximum(np.sqrt(dot(a, a)), least)[..., None]


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Head-to-world rotation [3, 3] of angles in degrees.

    The head turns by yaw (to the image's right), is raised by pitch and then rolled clockwise.
    """
    y, p, r = np.deg2rad([yaw, pitch, -roll])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rx = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return rz @ rx @ ry


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on the z axis that looks at the origin.

    Attributes:
        size: side of the image, pixels.
        width: what it spans at the face's depth, decimetres.
        distance: from the origin, decimetres.
        centre: where the z axis appears, to the right of and above the image's middle, decimetres
            at the face's depth.
    """

    size: int
    width: float
    distance: float
    centre: tuple[float, float]

    def rays(self) -> Array:
        """Unit directions float32 [size, size, 3] of the pixels' rays from (0, 0, distance)."""
        axis = ((np.arange(self.size, dtype=np.float32) + 0.5) / self.size - 0.5) * self.width
        x = np.broadcast_to(axis[None, :] - self.centre[0], (self.size, self.size))
        y = np.broadcast_to(-axis[:, None] - self.centre[1], (self.size, self.size))
        d = np.stack([x, y, np.full_like(x, -(self.distance - FACE_DEPTH))], -1)
        return unit(d)

    def project(self, points: Array) -> Array:
        """World points [n, 3] to pixels [n, 2]; the centre of the top-left pixel is (0, 0)."""
        k = (self.distance - FACE_DEPTH) / (self.distance - points[:, 2])
        x = (points[:, 0] * k + self.centre[0]) / self.width + 0.5
        y = 0.5 - (points[:, 1] * k + self.centre[1]) / self.width
        return np.stack([x, y], -1) * self.size - 0.5


def meet_sphere(origin: Array, rays: Array, radius: float) -> tuple[Array, Array, Array]:
    """Whether rays meet a sphere about 0, and the distances where they enter and leave it."""
    b = rays @ origin
    disc = b * b - (origin @ origin - radius * radius)
    root = np.sqrt(np.maximum(disc, 0))
    return disc > 0, -b - root, -b + root


def meet_ellipsoid(
    origin: Array, rays: Array, centre: Array, axes: Array, before: Array
) -> tuple[Array, Array, Array]:
    """Where rays meet an ellipsoid nearer than something else.

    Args:
        origin: of all rays [3].
        rays: unit directions [..., 3].
        centre, axes: of the ellipsoid, its half axes along x, y, z [3].
        before: distance [...] of what hides it.

    Returns:
        bool [...], m of them true; distances [m] of the first hits and outward unit normals [m, 3].
    """
    dtype = rays.dtype
    o = ((origin - centre) / axes).astype(dtype)
    d = rays * (1 / axes).astype(dtype)
    a, b, c = dot(d, d), dot(d, o), o @ o - 1
    disc = b * b - a * c
    hit = disc > 0
    t = (-b[hit] - np.sqrt(disc[hit])) / a[hit]
    front = t < before[hit]
    hit[hit] = front
    t = t[front]
    normal = (o + t[:, None] * d[hit]) / axes.astype(dtype)
    return hit, t, unit(normal, 1e-9)
