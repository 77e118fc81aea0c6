"""Photographs of rendered people, and the truth about them: ray casting, light, place, sensor.

The head is a star-shaped surface r(direction), see geometry.py. Each pixel's ray is marched to it
in the head's own frame; neck, shoulders and long hair are ellipsoids met in closed form. Plain
NumPy: no GPU, no graphics library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from pipeline_steps.demo_world.rendering.face import expression_of
from pipeline_steps.demo_world.rendering.geometry import (
    EXTENT,
    Camera,
    dot,
    meet_ellipsoid,
    meet_sphere,
    rotation,
    to_map,
    unit,
)
from pipeline_steps.demo_world.rendering.head import Head, build_head
from pipeline_steps.demo_world.rendering.parameters import Identity, Nuisance
from pipeline_steps.demo_world.rendering.places import paint_place

PUPIL_DISTANCE = 0.63  # decimetres
_FACE_DROP = 0.22  # the face's middle, not the head's, stands in the image's centre; decimetres
_TEXELS = (160, 1400)  # of the head's maps per axis, at least and at most
_TEXELS_PER_PIXEL = 1.05
_MARCH_STEPS, _COARSE_STEPS = 22, 12  # the coarse ones read the nearest texel
_MARCH_PACE = 0.62  # of the gap to the surface
_HIT_GAP = 0.12  # decimetres; rays that stay farther away have missed

Array = np.ndarray


@dataclass(frozen=True)
class Photograph:
    """A rendered image and what the renderer knows of it.

    Attributes:
        image: uint8 [size, size, 3] RGB.
        landmarks: float64 [5, 2], pixels, the centre of the top-left pixel being (0, 0): left eye,
            right eye, nose tip, left and right mouth corner, left and right as seen in the image;
            also where they are turned out of sight.
        yaw: degrees, see `Nuisance`.
    """

    image: Array
    landmarks: Array
    yaw: float


def _march(
    head: Head, origin: Array, rays: Array, near: Array, far: Array
) -> tuple[Array, Array, Array]:
    """March rays [m, 3] to the head, all in its frame.

    Returns:
        Distance [m] at which each meets it (inf where it misses), and the map's column and row
        there, in texels.
    """
    n = head.radius.shape[0]
    scale = (n - 1) / (2 * EXTENT)
    t = near.copy()
    for step in range(_MARCH_STEPS):
        p = origin + t[:, None] * rays
        r = np.sqrt(dot(p, p))
        u, v = to_map(p / r[:, None])
        cu = np.clip((u + EXTENT) * scale, 0, n - 1.001)
        cv = np.clip((v + EXTENT) * scale, 0, n - 1.001)
        if step < _COARSE_STEPS:
            surface = head.radius[(cv + 0.5).astype(np.int32), (cu + 0.5).astype(np.int32)]
        else:
            surface = map_coordinates(
                head.radius, [cv, cu], order=1, mode="nearest", prefilter=False
            )
        gap = r - surface
        t = np.minimum(t + _MARCH_PACE * gap, far + 0.05)
    hit = (gap < _HIT_GAP) & (t < far)
    return np.where(hit, t, np.inf), cu, cv


def _light(
    colour: Array, normal: Array, gloss: Array, view: Array, nuisance: Nuisance, occlusion: Array
) -> Array:
    """Radiance [m, 3] of surface points: key light, fill, occluded ambient, a highlight.

    Args:
        colour, normal, gloss, occlusion: of the points, see `Head`; [m, 3] or [m].
        view: unit directions of the rays that see them [m, 3].
        nuisance: the lights.
    """
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
    shine = 0.35 * power * gloss * np.clip(dot(normal, unit(key - view)), 0, 1) ** 22
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
    """Draw neck, shoulders and the hair behind them where they are nearer than what is there.

    `image` [s, s, 3] and `depth` [s, s] are changed in place.
    """
    for centre, axes, colour, shine in _body_parts(identity, nuisance, head, rot):
        front, t, normal = meet_ellipsoid(origin, rays, centre, axes, depth)
        colours = np.broadcast_to(colour.astype(np.float32), normal.shape)
        gloss, occlusion = np.full_like(t, shine, np.float32), np.full_like(t, 0.85, np.float32)
        image[front] = _light(colours, normal, gloss, rays[front], nuisance, occlusion)
        depth[front] = t


def _body_parts(
    identity: Identity, nuisance: Nuisance, head: Head, rot: Array
) -> list[tuple[Array, Array, Array, float]]:
    """Centre, half axes, colour and gloss of each ellipsoid of the body."""
    lean = np.sin(np.deg2rad(nuisance.yaw)) * 0.12
    neck = 0.41 + 0.04 * identity.shape["jaw_width"] + (0.06 if identity.gender == "male" else 0.0)
    shoulders = 2.15 if identity.gender == "male" else 1.85
    skin, shirt = np.asarray(identity.skin) * 0.86, np.asarray(nuisance.shirt)
    middle = np.array([lean * 0.5, -1.35, -0.18])
    parts = [(middle, np.array([neck, 1.0, neck]), skin, 0.1)]
    parts += [(np.array([0, -2.80, -0.35]), np.array([shoulders, 1.25, 0.85]), shirt, 0.1)]
    if head.hair_back is not None:
        wide, long = head.hair_back
        grey = np.clip((nuisance.age - 0.5) / 0.5, 0, 1) * 0.85
        tone = np.asarray(identity.hair) * (1 - grey) + 0.69 * grey
        middle = rot @ np.array([0, -0.25 - 0.5 * long + 0.35, -0.42])
        parts.append((middle, np.array([wide, 0.55 * long + 0.45, 0.42]), tone * 0.8, 0.3))
    return parts


def render(
    identity: Identity, nuisance: Nuisance, *, size: int, texture_seed: int, supersample: int
) -> Photograph:
    """Photograph a person.

    Args:
        identity: who.
        nuisance: how; its `seed` draws background details and sensor noise.
        size: side of the square image, pixels.
        texture_seed: grain of skin and hair; give the same for all photographs of an identity.
        supersample: rays per pixel and axis.

    Raises:
        KeyError: there is no such place or expression.
    """
    rng = np.random.default_rng(nuisance.seed)
    width = PUPIL_DISTANCE / nuisance.scale
    big = size * supersample
    centre = (nuisance.shift[0] * width, _FACE_DROP - nuisance.shift[1] * width)
    camera = Camera(big, width, nuisance.camera_distance, centre)
    texels = int(np.clip(_TEXELS_PER_PIXEL * 2 * EXTENT / width * big, *_TEXELS))
    expression = expression_of(nuisance.expression, nuisance.intensity)
    head = build_head(identity, expression, nuisance.age, texels, texture_seed)
    image = _background(nuisance, size, big, rng)
    rot = rotation(nuisance.yaw, nuisance.pitch, nuisance.roll).astype(np.float32)
    rays = camera.rays()
    origin = np.array([0, 0, nuisance.camera_distance], np.float32)
    depth = _draw_head(image, rays, origin, nuisance, head, rot)
    _body(image, depth, rays, origin, identity, nuisance, head, rot)

    if supersample > 1:
        image = image.reshape(size, supersample, size, supersample, 3).mean((1, 3))
    image *= nuisance.exposure
    if nuisance.blur > 0:
        image = gaussian_filter(image, (nuisance.blur * size / 64,) * 2 + (0,), truncate=3)
    image += rng.normal(0, nuisance.noise, image.shape)
    landmarks = Camera(size, width, nuisance.camera_distance, centre).project(
        head.landmarks @ rot.T.astype(np.float64)
    )
    return Photograph(
        image=(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8),
        landmarks=landmarks,
        yaw=nuisance.yaw,
    )


def _background(nuisance: Nuisance, size: int, big: int, rng: np.random.Generator) -> Array:
    """The place out of focus, [big, big, 3], for a picture of `size` pixels."""
    place = paint_place(nuisance.place, max(size, 96), rng)
    place = gaussian_filter(place, (0.012 * len(place),) * 2 + (0,), mode="nearest", truncate=2.5)
    axis = (np.arange(big) + 0.5) / big * len(place) - 0.5
    index = np.clip(np.round(axis).astype(int), 0, len(place) - 1)
    image = place[index][:, index].copy()
    glow = 0.35 + 0.65 * (nuisance.ambient + 0.5 * nuisance.light_power)
    image *= glow / max(glow, 0.6)
    return image


def _draw_head(
    image: Array, rays: Array, origin: Array, nuisance: Nuisance, head: Head, rot: Array
) -> Array:
    """Draw the head into `image` [s, s, 3], in place; the distance to it [s, s], inf elsewhere."""
    depth = np.full(image.shape[:2], np.inf, np.float32)
    head_rays = rays @ rot
    inside, near, far = meet_sphere(origin @ rot, head_rays, head.max_radius + 1e-3)
    t, cu, cv = _march(head, origin @ rot, head_rays[inside], near[inside], far[inside])
    hit = np.isfinite(t)
    where = np.nonzero(inside)
    rows, cols = where[0][hit], where[1][hit]
    at = [cv[hit], cu[hit]]

    def lookup(channel: Array) -> Array:
        return map_coordinates(channel, at, order=1, mode="nearest", prefilter=False)

    colour, normal = (
        np.stack([lookup(channels[..., k]) for k in range(3)], -1)
        for channels in (head.colour, head.normal)
    )
    normal = unit(normal @ rot.T, 1e-6)
    image[rows, cols] = _light(
        colour, normal, lookup(head.gloss), rays[rows, cols], nuisance, lookup(head.occlusion)
    )
    depth[rows, cols] = t[hit]
    return depth
