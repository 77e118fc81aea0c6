"""From an identity, an expression and an age to a head's radius and colour maps, hair, landmarks.

Lengths are in decimetres, map coordinates those of geometry.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline_steps.demo_world.rendering.face import Expression, FaceLayout, layout_of, paint_face
from pipeline_steps.demo_world.rendering.geometry import (
    EXTENT,
    Array,
    Canvas,
    smoothstep,
    to_direction,
    unit,
)
from pipeline_steps.demo_world.rendering.parameters import Identity


@dataclass(frozen=True)
class Head:
    """A head's surface, as maps (geometry.py), in its own frame: x right, y up, z to the front.

    Attributes:
        radius: float32 [n, n], distance from the head's centre, hair included.
        colour: float32 [n, n, 3], RGB in [0, 1].
        gloss: float32 [n, n].
        normal: float32 [n, n, 3], outward unit vectors.
        occlusion: float32 [n, n], share of the ambient light that arrives, in [0.35, 1].
        landmarks: float64 [5, 3]: left eye, right eye, nose tip, left and right mouth corner, left
            and right as seen from the front.
        max_radius: of all the map.
        hair_back: (half width, length) of hair behind the neck, or None.
    """

    radius: Array
    colour: Array
    gloss: Array
    normal: Array
    occlusion: Array
    landmarks: Array
    max_radius: float
    hair_back: tuple[float, float] | None


def _skull(identity: Identity, directions: Array) -> Array:
    """Radius [n, n] of the bare head: a rounded box, narrower at the jaw, longer or shorter."""
    s = identity.shape
    dx, dy, dz = (directions[..., i] for i in range(3))
    widest = 0.79 * (1 + 0.045 * s["head_width"])
    b_up = 1.18 * (1 + 0.03 * s["head_height"] + 0.02 * s["forehead"])
    b_down = 1.30 * (1 + 0.028 * s["chin_length"])
    c = 0.98 * (1 + 0.03 * s["head_depth"])
    low = smoothstep(-0.15, -0.95, dy)
    a = widest * (1 - low * (0.24 - 0.055 * s["jaw_width"]))
    b = np.where(dy > 0, b_up, b_down)
    back_low = smoothstep(-0.2, -0.8, dy) * smoothstep(0.1, -0.4, dz)
    b = b * (1 - 0.25 * back_low)
    p = 2.35
    return (np.abs(dx / a) ** p + np.abs(dy / b) ** p + np.abs(dz / c) ** p) ** (-1 / p)


def _relief(canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, age: float) -> None:
    """Hills and dents of the face on the skull, for a jaw that opening lowers."""
    shift = -0.55 * e.opening
    _chin_and_cheeks(canvas, identity, f, e, age, shift)
    _eyes_and_nose(canvas, identity, f)
    _lips(canvas, f, e, shift)
    s = identity.shape
    ear = s["ear_size"]
    canvas.bump(1.80, -0.08, 0.10, 0.20 + 0.02 * ear, 0.13 + 0.03 * ear, mirror=True)
    canvas.bump(0.3, 0.0, 0.5, 0.6, 0.012 * s["asymmetry"])


def _chin_and_cheeks(
    canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, age: float, shift: float
) -> None:
    s = identity.shape
    chin = 0.20 + 0.025 * s["chin_width"]
    canvas.bump(0, f.chin_v + shift, chin, 0.15, 0.085 + 0.02 * s["jaw_drop"])
    canvas.bump(0, -0.78 + shift, 0.34, 0.28, 0.05)
    canvas.bump(0.47, -0.30, 0.17, 0.15, 0.035 + 0.015 * s["cheekbone"], mirror=True)
    cheek = -0.02 + 0.018 * s["cheek_full"] + 0.25 * e.corners - 0.015 * age
    canvas.bump(0.45, -0.60, 0.17, 0.20, cheek, mirror=True)


def _eyes_and_nose(canvas: Canvas, identity: Identity, f: FaceLayout) -> None:
    s = identity.shape
    canvas.bump(f.eye_u, f.brow_v - 0.02, 0.20, 0.075, 0.035 + 0.012 * s["brow_ridge"], mirror=True)
    canvas.bump(f.eye_u, f.eye_v, 0.17, 0.10, -0.085, mirror=True)
    canvas.bump(f.eye_u, f.eye_v, 0.115, 0.075, 0.055, mirror=True)
    w, middle = f.nose_width, 0.5 * (f.eye_v + f.nose_v)
    height, bridge, tip = 0.165 + 0.02 * s["nose_height"], s["nose_bridge"], s["nose_tip"]
    canvas.bump(0, f.eye_v + 0.02, 0.062, 0.13, 0.05 + 0.018 * bridge)
    canvas.bump(0, middle, 0.062 + 0.1 * (w - 0.165), 0.15, 0.5 * height + 0.012 * bridge)
    tip_width = 0.082 + 0.2 * (w - 0.165)
    canvas.bump(0, f.nose_v + 0.05, tip_width, 0.085, 0.82 * height + 0.012 * tip)
    canvas.bump(0.72 * w, f.nose_v, 0.052, 0.055, 0.085, mirror=True)
    canvas.bump(0, f.nose_v - 0.12, 0.07, 0.06, -0.012)


def _lips(canvas: Canvas, f: FaceLayout, e: Expression, shift: float) -> None:
    v, half, upper, lower, gap = f.mouth_v, f.mouth_half, f.lip_upper, f.lip_lower, e.opening
    canvas.bump(0, v + 0.6 * upper, 0.8 * half, 0.05, 0.036 + 0.3 * upper)
    canvas.bump(0, v - 0.6 * lower + shift, 0.6 * half, 0.05, 0.036 + 0.3 * lower)
    canvas.bump(0, v - 0.17 + shift, 0.20, 0.05, -0.035)
    if gap > 0.03:
        canvas.bump(0, v - 0.5 * gap, 0.6 * half, 0.5 * gap, -0.9 * gap)


def _normals(radius: Array, directions: Array) -> Array:
    """Outward unit normals [n, n, 3] of the star-shaped surface, from differences on the grid."""
    p = radius[..., None] * directions
    dv, du = (np.gradient(p, axis=axis) for axis in (0, 1))
    return unit(np.cross(du, dv), 1e-9)


def _occlusion(relief: Array, texel: float) -> Array:
    """Ambient occlusion [n, n] from how far a place lies below its surroundings."""
    hollow = gaussian_filter(relief, 0.09 / texel, mode="nearest", truncate=2.5) - relief
    return np.clip(1 - 4.5 * np.maximum(hollow, 0), 0.35, 1).astype(np.float32)


@lru_cache(maxsize=32)
def _directions(n: int) -> Array:
    """Unit directions float32 [n, n, 3] of the map's texels; kept, because they are costly."""
    axis = np.linspace(-EXTENT, EXTENT, n, dtype=np.float32)
    grid = to_direction(axis[None, :].repeat(n, 0), axis[:, None].repeat(n, 1)).astype(np.float32)
    grid.setflags(write=False)
    return grid


def _landmarks(f: FaceLayout, e: Expression, radius: Array, texel: float) -> Array:
    """Landmarks [5, 3] on the surface: eyes, nose tip, mouth corners."""
    corner_v = f.mouth_v + 0.012 + 0.8 * e.corners - 0.4 * e.opening
    half, eye_v = 0.95 * f.mouth_half * (1 + e.stretch), f.eye_v + 0.012
    u = np.array([-f.eye_u, f.eye_u, 0, -half, half])
    v = np.array([eye_v, eye_v, f.nose_v + 0.072, corner_v, corner_v])
    column, row = (
        np.clip(np.round((at + EXTENT) / texel).astype(int), 0, len(radius) - 1) for at in (u, v)
    )
    return to_direction(u, v) * radius[row, column, None]


def build_head(
    identity: Identity, expression: Expression, age: float, n: int, texture_seed: int = 0
) -> Head:
    """Build the head of an identity at an age in [0, 1], with maps of n texels per axis.

    `texture_seed` is of hair and skin grain: the same for all photographs of an identity.
    """
    canvas = Canvas(n, identity.skin)
    f = layout_of(identity)
    directions = _directions(n)
    _relief(canvas, identity, f, expression, age)
    grain = np.random.default_rng(texture_seed)
    paint_face(canvas, identity, f, expression, age, grain)
    occlusion = _occlusion(canvas.relief, canvas.texel)
    thickness, back = add_hair(canvas, identity, age, grain)
    radius = (_skull(identity, directions) + canvas.relief + thickness).astype(np.float32)
    return Head(
        radius=radius,
        colour=np.clip(canvas.colour, 0, 1),
        gloss=canvas.gloss,
        normal=_normals(radius, directions).astype(np.float32),
        occlusion=occlusion,
        landmarks=_landmarks(f, expression, radius, canvas.texel),
        max_radius=float(radius.max()),
        hair_back=back,
    )


GREY = np.array([0.70, 0.69, 0.68])  # RGB


@dataclass(frozen=True)
class _Style:
    """What a style is like; lengths in decimetres."""

    thickness: float
    temple: float  # |U| from which on hair covers the side of the face
    back: tuple[float, float] | None = None  # half width and length of what hangs behind the neck

    @property
    def long(self) -> bool:
        """Whether it covers the neck."""
        return self.back is not None


_STYLES = {
    "short": _Style(0.075, 1.02),
    "fringe": _Style(0.11, 0.92),
    "side": _Style(0.12, 0.98),
    "bob": _Style(0.15, 0.90, (0.98, 1.15)),
    "long": _Style(0.13, 0.88, (1.05, 2.3)),
    "curly": _Style(0.22, 0.94),
}
_SHOWS_EARS = ("short", "fringe", "side")


def add_hair(
    canvas: Canvas, identity: Identity, age: float, grain: np.random.Generator
) -> tuple[Array, tuple[float, float] | None]:
    """Paint the hair, greyer from an age of 0.5 on; the canvas's relief stays as it is.

    Returns:
        Thickness float32 [n, n], decimetres; and (half width, length) in decimetres of what hangs
        behind the neck, None for short styles.
    """
    name = identity.hair_style
    if name == "bald":
        return np.zeros_like(canvas.relief), None
    style = _STYLES[name]
    grey = smoothstep(0.5, 1.0, age) * 0.85
    colour = np.asarray(identity.hair) * (1 - grey) + GREY * grey
    u, v = canvas.axis[None, :], canvas.axis[:, None]
    mask = _mask(canvas, identity, style, u, v)
    strands = _strands(identity, u, v, grain)
    everything = (slice(None), slice(None))
    canvas.paint(everything, mask, colour * (0.72 + 0.5 * strands[..., None]), gloss=0.35)
    soft = gaussian_filter(mask, 0.045 / canvas.texel, mode="nearest", truncate=2.5)
    thickness = style.thickness * soft * smoothstep(-1.3, -0.3, v)
    if name == "curly":
        thickness = thickness * (0.9 + 0.15 * strands)
    return thickness.astype(np.float32), style.back


def _outline(identity: Identity, u: Array) -> tuple[Array, float]:
    """The hairline V [1, n] over the columns U [1, n], and how far down the sides hair reaches."""
    name = identity.hair_style
    line = 0.80 + 0.05 * identity.hairline
    au = np.abs(u)
    if name == "short":
        return line + 0.10 - 0.10 * au * au, 0.10
    if name == "fringe":
        top = 0.42 + 0.02 * identity.hairline + 0.02 * np.sin(u * 30 + 9 * identity.parting)
        return top, -0.1
    if name == "side":
        side = np.sign(identity.parting or 1.0)
        x = (u - 0.45 * side) * side  # beyond the parting
        top = line - 0.04 - 0.35 * np.clip(-x, 0, 0.7) * 0.55 + 0.06 * np.clip(x, 0, 1)
        return top, 0.0
    if name == "curly":
        return line - 0.06 + 0.05 * np.sin(u * 17 + 5 * identity.parting), -0.15
    p = 0.35 * identity.parting
    top = line + 0.06 - 0.55 * np.minimum(np.abs(u - p), 0.9) ** 1.6
    return top, -1.1 if name == "bob" else -1.6


def _mask(canvas: Canvas, identity: Identity, style: _Style, u: Array, v: Array) -> Array:
    """Where there is hair, float32 [n, n] in [0, 1]: above the hairline, beside it, and behind."""
    top, side_bottom = _outline(identity, u)
    au = np.abs(u)
    above = canvas.edge(v - top, 0.05)
    beside = canvas.edge(au - (style.temple + 0.16 * smoothstep(0.35, -0.9, v) * style.long), 0.06)
    beside = beside * canvas.edge(v - side_bottom, 0.12)
    behind_ear = (au > 1.95) | (np.sqrt(u * u + v * v) > 2.2)
    mask = np.maximum(above, beside)
    if identity.hair_style in _SHOWS_EARS:
        ear = np.exp(-(((au - 1.72) / 0.16) ** 2) - ((v + 0.12) / 0.26) ** 2)
        mask = mask * (1 - canvas.edge(ear - 0.3, 0.3) * (v < 0.2))
    nape = canvas.edge(v + 1.35 + 0.15 * style.long, 0.1)
    return np.maximum(mask, behind_ear * nape).astype(np.float32)


def _strands(identity: Identity, u: Array, v: Array, grain: np.random.Generator) -> Array:
    """Brightness of strands or curls, [n, n], about [0, 1]."""
    phase = 6 * grain.random()
    if identity.hair_style == "curly":
        return np.abs(np.sin(21 * u + 4 * np.sin(9 * v)) * np.sin(19 * v + 4 * np.sin(8 * u)))
    strands = 0.5 + 0.2 * np.sin(34 * u + 11 * np.sin(2.1 * v + 3 * identity.parting) + phase * v)
    return strands + 0.2 * np.sin(61 * u + 7 * np.sin(1.3 * v + 5 * identity.parting))
