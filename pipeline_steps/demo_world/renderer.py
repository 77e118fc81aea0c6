"""Photographs of rendered people: camera, ray casting, light, background, sensor; and the truth about them.

The head is a star-shaped surface r(direction) (see canvas.py). Each pixel's ray is marched to it in the head's own
frame; neck, shoulders and long hair are ellipsoids met in closed form. Plain NumPy: no GPU, no graphics library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from pipeline_steps.demo_world.canvas import EXTENT, to_map
from pipeline_steps.demo_world.head import Head, build_head, expression_of
from pipeline_steps.demo_world.identity import Identity
from pipeline_steps.demo_world.nuisance import Nuisance
from pipeline_steps.demo_world.places import paint_place

PUPIL_DISTANCE = 0.63
_FACE_DEPTH = 0.80

Array = np.ndarray


@dataclass(frozen=True)
class Photograph:
    """A rendered image and what the renderer knows of it.

    image: uint8 [size, size, 3] RGB. landmarks: float64 [5, 2] pixels (left eye, right eye, nose tip, left and right
    mouth corner, as seen in the image), also where turned out of sight. yaw, pitch, roll: degrees.
    """

    image: Array
    landmarks: Array
    yaw: float
    pitch: float
    roll: float


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Head-to-world rotation [3, 3]: turn by yaw (to the image's right), raise by pitch, then roll clockwise."""
    y, p, r = np.deg2rad([yaw, pitch, -roll])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rx = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return rz @ rx @ ry


@dataclass(frozen=True)
class _Camera:
    size: int
    width: float  # world units across the image at the face's depth
    distance: float
    centre: tuple[float, float]

    def rays(self) -> Array:
        """Ray directions [size, size, 3] from (0, 0, distance)."""
        axis = ((np.arange(self.size, dtype=np.float32) + 0.5) / self.size - 0.5) * self.width
        x = np.broadcast_to(axis[None, :] - self.centre[0], (self.size, self.size))
        y = np.broadcast_to(-axis[:, None] - self.centre[1], (self.size, self.size))
        d = np.stack([x, y, np.full_like(x, -(self.distance - _FACE_DEPTH))], -1)
        return d / np.linalg.norm(d, axis=-1, keepdims=True)

    def project(self, points: Array) -> Array:
        """World points [n, 3] to pixel coordinates [n, 2] (pixel centres at .5 are integers, as detectors count)."""
        k = (self.distance - _FACE_DEPTH) / (self.distance - points[:, 2])
        x = (points[:, 0] * k + self.centre[0]) / self.width + 0.5
        y = 0.5 - (points[:, 1] * k + self.centre[1]) / self.width
        return np.stack([x, y], -1) * self.size - 0.5


def _sphere(origin: Array, rays: Array, radius: float) -> tuple[Array, Array, Array]:
    b = rays @ origin
    disc = b * b - (origin @ origin - radius * radius)
    root = np.sqrt(np.maximum(disc, 0))
    return disc > 0, -b - root, -b + root


def _ellipsoid(origin: Array, rays: Array, centre: Array, axes: Array) -> tuple[Array, Array]:
    """First hit distance (inf where missed) and unit normal of an axis-aligned ellipsoid."""
    o, d = (origin - centre) / axes, rays / axes
    a, b, c = (d * d).sum(-1), d @ o, o @ o - 1
    disc = b * b - a * c
    t = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    p = o + np.where(np.isfinite(t), t, 0)[..., None] * d
    n = p / axes
    return t.astype(np.float32), n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-9)


def _march(
    head: Head, origin: Array, rays: Array, near: Array, far: Array
) -> tuple[Array, Array, Array]:
    """Distance along the rays [m] at which they meet the head (inf where they miss), and map coordinates there."""
    n = head.radius.shape[0]
    scale = (n - 1) / (2 * EXTENT)
    t = near.copy()
    for step in range(22):
        p = origin + t[:, None] * rays
        r = np.sqrt((p * p).sum(-1))
        u, v = to_map(p / r[:, None])
        cu, cv = (
            np.clip((u + EXTENT) * scale, 0, n - 1.001),
            np.clip((v + EXTENT) * scale, 0, n - 1.001),
        )
        if step < 12:
            surface = head.radius[(cv + 0.5).astype(np.int32), (cu + 0.5).astype(np.int32)]
        else:
            surface = map_coordinates(
                head.radius, [cv, cu], order=1, mode="nearest", prefilter=False
            )
        gap = r - surface
        t = np.minimum(t + 0.62 * gap, far + 0.05)
    hit = (gap < 0.12) & (t < far)
    return np.where(hit, t, np.inf), cu, cv


def _light(
    colour: Array, normal: Array, gloss: Array, view: Array, nuisance: Nuisance, occlusion: Array
) -> Array:
    """Key light with soft terminator, weak fill from the other side, ambient with occlusion, a highlight."""
    az, el = np.deg2rad([nuisance.light_azimuth, nuisance.light_elevation])
    key = np.array([np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)], np.float32)
    fill = np.array([-0.6 * np.sign(key[0] or 1), 0.2, 0.75], np.float32)
    fill /= np.linalg.norm(fill)
    diffuse = np.clip((normal @ key + 0.22) / 1.22, 0, 1)
    wash = np.clip(normal @ fill, 0, 1)
    sky = 0.75 + 0.25 * normal[..., 1]
    power, ambient = nuisance.light_power, nuisance.ambient
    lit = (
        0.85 * power * diffuse * (0.5 + 0.5 * occlusion)
        + (0.9 * ambient * sky + 0.10 * wash) * occlusion
    )
    half = key - view
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    shine = 0.35 * power * gloss * np.clip((normal * half).sum(-1), 0, 1) ** 22
    warm = np.array([1 + nuisance.warmth, 1.0, 1 - nuisance.warmth], np.float32)
    return colour * (lit[..., None] * warm) + shine[..., None]


def _body(
    image: Array,
    depth: Array,
    rays: Array,
    origin: Array,
    identity: Identity,
    nuisance: Nuisance,
    head: Head,
    rot: Array,
) -> None:
    """Neck, shoulders and the hair behind them, drawn where nearer than what is there."""
    lean = np.sin(np.deg2rad(nuisance.yaw)) * 0.12
    neck = 0.41 + 0.04 * identity.shape["jaw_width"] + (0.06 if identity.gender == "male" else 0.0)
    shoulders = 2.15 if identity.gender == "male" else 1.85
    parts: list[tuple[Array, Array, Array, float]] = [
        (
            np.array([lean * 0.5, -1.35, -0.18]),
            np.array([neck, 1.0, neck]),
            np.asarray(identity.skin) * 0.86,
            0.1,
        ),
        (
            np.array([0, -2.80, -0.35]),
            np.array([shoulders, 1.25, 0.85]),
            np.asarray(nuisance.shirt),
            0.1,
        ),
    ]
    if head.hair_back is not None:
        wide, long = head.hair_back
        grey = np.clip((nuisance.age - 0.5) / 0.5, 0, 1) * 0.85
        tone = np.asarray(identity.hair) * (1 - grey) + 0.69 * grey
        middle = rot @ np.array([0, -0.25 - 0.5 * long + 0.35, -0.42])
        parts.append((middle, np.array([wide, 0.55 * long + 0.45, 0.42]), tone * 0.8, 0.3))
    for centre, axes, colour, gloss in parts:
        t, normal = _ellipsoid(origin, rays, centre, axes)
        front = t < depth
        if not front.any():
            continue
        n = normal[front].astype(np.float32)
        m = len(n)
        shadow = np.full(m, 0.85, np.float32)
        image[front] = _light(
            np.broadcast_to(colour.astype(np.float32), (m, 3)),
            n,
            np.full(m, gloss, np.float32),
            rays[front],
            nuisance,
            shadow,
        )
        depth[front] = t[front]


def render(
    identity: Identity,
    nuisance: Nuisance,
    *,
    size: int = 64,
    texture_seed: int = 0,
    supersample: int = 2,
) -> Photograph:
    """Photograph a person.

    Args:
        identity: who.
        nuisance: how; its `seed` draws background details and sensor noise.
        size: side of the square image, pixels.
        texture_seed: grain of skin and hair; give the same for all photographs of an identity.
        supersample: rays per pixel and axis.
    """
    rng = np.random.default_rng(nuisance.seed)
    width = PUPIL_DISTANCE / nuisance.scale
    big = size * supersample
    drop = 0.22  # the face's middle, not the head's, stands in the image's centre
    camera = _Camera(big, width, nuisance.camera_distance,
                     (nuisance.shift[0] * width, drop - nuisance.shift[1] * width))  # fmt: skip
    texels = int(np.clip(1.05 * 2 * EXTENT / width * big, 160, 1400))
    head = build_head(
        identity,
        expression_of(nuisance.expression, nuisance.intensity),
        nuisance.age,
        texels,
        texture_seed,
    )

    background = paint_place(nuisance.place, max(size, 96), rng)
    background = gaussian_filter(
        background, (0.012 * len(background),) * 2 + (0,), mode="nearest", truncate=2.5
    )
    axis = (np.arange(big) + 0.5) / big * len(background) - 0.5
    index = np.clip(np.round(axis).astype(int), 0, len(background) - 1)
    image = background[index][:, index].copy()
    glow = 0.35 + 0.65 * (nuisance.ambient + 0.5 * nuisance.light_power)
    image *= glow / max(glow, 0.6)

    rot = rotation(nuisance.yaw, nuisance.pitch, nuisance.roll).astype(np.float32)
    rays = camera.rays()
    origin = np.array([0, 0, nuisance.camera_distance], np.float32)
    depth = np.full((big, big), np.inf, np.float32)

    head_rays = rays @ rot
    inside, near, far = _sphere(origin @ rot, head_rays, head.max_radius + 1e-3)
    t, cu, cv = _march(head, origin @ rot, head_rays[inside], near[inside], far[inside])
    hit = np.isfinite(t)
    where = np.nonzero(inside)
    rows, cols = where[0][hit], where[1][hit]
    at = [cv[hit], cu[hit]]

    def lookup(channel: Array) -> Array:
        return map_coordinates(channel, at, order=1, mode="nearest", prefilter=False)

    colour = np.stack([lookup(head.colour[..., k]) for k in range(3)], -1)
    normal = np.stack([lookup(head.normal[..., k]) for k in range(3)], -1) @ rot.T
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    image[rows, cols] = _light(
        colour, normal, lookup(head.gloss), rays[rows, cols], nuisance, lookup(head.occlusion)
    )
    depth[rows, cols] = t[hit]
    _body(image, depth, rays, origin, identity, nuisance, head, rot)

    image = image.reshape(size, supersample, size, supersample, 3).mean((1, 3)) * nuisance.exposure
    if nuisance.blur > 0:
        image = gaussian_filter(image, (nuisance.blur * size / 64,) * 2 + (0,), truncate=3)
    image += rng.normal(0, nuisance.noise, image.shape)
    landmarks = _Camera(size, width, nuisance.camera_distance, camera.centre).project(
        head.landmarks @ rot.T.astype(np.float64)
    )
    return Photograph(
        image=(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8),
        landmarks=landmarks,
        yaw=nuisance.yaw,
        pitch=nuisance.pitch,
        roll=nuisance.roll,
    )
