"""Geometry of a photograph: the head's rotation, a pinhole camera, rays against simple bodies.

World coordinates: decimetres, x to the image's right, y up, z towards the camera, the head's centre
at the origin.

A head's surface is kept as maps over stereographic coordinates, radius and colour (`Canvas`). A
direction d (unit vector) has U = S dx / (1 + dz), V = S dy / (1 + dz) with S = 1.9, so that lengths
near the face's centre are about decimetres. Maps have V as their first axis, from -EXTENT to
EXTENT, and U as their second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FACE_DEPTH = 0.80  # z of the plane at which the camera's width is measured, decimetres

Array = np.ndarray


def dot(a: Array, b: Array) -> Array:
    """Scalar products [...] along the last axis, of length 3, for which a sum is much slower."""
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
        x, y = np.meshgrid(axis - self.centre[0], -axis - self.centre[1])
        return unit(np.stack([x, y, np.full_like(x, -(self.distance - FACE_DEPTH))], -1))

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


SPREAD = 1.9
EXTENT = 2.7

Window = tuple[slice, slice]


def to_map(directions: Array) -> tuple[Array, Array]:
    """Stereographic coordinates U, V, [...] each, of unit directions [..., 3]."""
    k = SPREAD / np.maximum(1.0 + directions[..., 2], 0.05)
    return directions[..., 0] * k, directions[..., 1] * k


def to_direction(u: Array, v: Array) -> Array:
    """Unit directions [..., 3] of stereographic coordinates [...]."""
    a, b = np.asarray(u) / SPREAD, np.asarray(v) / SPREAD
    s = a * a + b * b
    return np.stack([2 * a / (1 + s), 2 * b / (1 + s), (1 - s) / (1 + s)], -1)


def smoothstep(low: float, high: float, x: ArrayLike) -> Array:
    """Cubic step from 0 at `low` to 1 at `high`; `low` > `high` steps down."""
    t = np.clip((np.asarray(x) - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


class Canvas:
    """Paintable maps of size [n, n] covering |U|, |V| <= EXTENT.

    Attributes:
        n: texels per axis.
        axis: coordinates of the texels, float32 [n].
        texel: distance of neighbours.
        colour: float32 [n, n, 3], RGB, about [0, 1]; at first the skin's.
        gloss: float32 [n, n], strength of highlights, 0 matt to 1 wet.
        relief: float32 [n, n], what is added to the skull's radius, decimetres.
    """

    def __init__(self, n: int, skin: Sequence[float]) -> None:
        self.n = n
        axis = np.linspace(-EXTENT, EXTENT, n, dtype=np.float32)
        self.axis = axis
        self.texel = float(axis[1] - axis[0])
        self.colour = np.broadcast_to(np.asarray(skin, np.float32), (n, n, 3)).copy()
        self.gloss = np.full((n, n), 0.25, np.float32)
        self.relief = np.zeros((n, n), np.float32)

    def window(self, cu: float, cv: float, ru: float, rv: float) -> tuple[Window, Array, Array]:
        """The part of the map within (ru, rv) of a centre, with its U [1, w] and V [h, 1]."""
        j0, j1 = np.searchsorted(self.axis, (cu - ru, cu + ru))
        i0, i1 = np.searchsorted(self.axis, (cv - rv, cv + rv))
        win = (slice(int(i0), int(i1)), slice(int(j0), int(j1)))
        return win, self.axis[None, win[1]], self.axis[win[0], None]

    def bump(
        self, cu: float, cv: float, su: float, sv: float, height: float, mirror: bool = False
    ) -> None:
        """Add a Gaussian hill, or a dent where `height` is negative, to the radius.

        Args:
            cu, cv: its middle.
            su, sv: standard deviations.
            height: decimetres.
            mirror: add it at -cu too.
        """
        for c in (cu, -cu) if mirror else (cu,):
            win, u, v = self.window(c, cv, 3.2 * su, 3.2 * sv)
            self.relief[win] += (
                height * np.exp(-0.5 * ((u - c) / su) ** 2) * np.exp(-0.5 * ((v - cv) / sv) ** 2)
            )

    def paint(
        self, win: Window, mask: Array, colour: Sequence[float] | Array, gloss: float | None = None
    ) -> None:
        """Blend a colour in, and a gloss.

        Args:
            win: where, of size [h, w].
            mask: weights [h, w], clipped to [0, 1].
            colour: RGB, or [h, w, 3].
            gloss: None leaves it as it is.
        """
        m = np.clip(mask, 0, 1).astype(np.float32)
        target = self.colour[win]
        target += m[..., None] * (np.asarray(colour, np.float32) - target)
        if gloss is not None:
            self.gloss[win] += m * (gloss - self.gloss[win])

    def shade(self, win: Window, mask: Array, factor: Sequence[float] | float) -> None:
        """Multiply the colour by `factor` (one, or RGB) where mask is 1, by 1 where it is 0."""
        self.colour[win] *= 1 + np.clip(mask, 0, 1)[..., None] * (
            np.asarray(factor, np.float32) - 1
        )

    def disc(
        self, cu: float, cv: float, ru: float, rv: float, softness: float | None = None
    ) -> tuple[Window, Array]:
        """A soft ellipse with half axes (ru, rv): its window, and a mask that is 1 inside.

        The mask falls to 0 over `softness`, at least 1.5 texels.
        """
        soft = max(softness or 0.0, 1.5 * self.texel)
        win, u, v = self.window(cu, cv, ru + soft, rv + soft)
        d = np.sqrt(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2)
        return win, np.clip((1 - d) * min(ru, rv) / soft + 0.5, 0, 1)

    def edge(self, distance: Array, softness: float = 0.0) -> Array:
        """Mask of a signed distance: 1 where positive, softened over at least 1.2 texels."""
        return np.clip(distance / max(softness, 1.2 * self.texel) + 0.5, 0, 1)
