"""From an identity, an expression and an age to a head's radius and colour maps, and its five landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_steps.demo_world.canvas import EXTENT, SPREAD, Canvas, smoothstep, to_direction
from pipeline_steps.demo_world.face_paint import paint_face
from pipeline_steps.demo_world.hair import add_hair
from pipeline_steps.demo_world.identity import Identity


@dataclass(frozen=True)
class Expression:
    """Muscle settings: mouth corners up (+) or down (-), jaw opening, brows up, brows drawn together, eyelids."""

    corners: float = 0.0
    stretch: float = 0.0
    opening: float = 0.0
    brow_raise: float = 0.0
    brow_inner: float = 0.0
    frown: float = 0.0
    eye_open: float = 1.0
    teeth: float = 0.0


_EXPRESSIONS = {
    "neutral": Expression(),
    "happy": Expression(
        corners=0.03, stretch=0.15, opening=0.055, eye_open=0.85, teeth=1.0, brow_raise=0.01
    ),
    "sad": Expression(
        corners=-0.04, stretch=-0.08, brow_inner=0.075, eye_open=0.72, brow_raise=-0.005
    ),
    "angry": Expression(corners=-0.03, stretch=0.02, frown=0.085, brow_raise=-0.055, eye_open=0.82),
    "shocked": Expression(stretch=-0.08, opening=0.125, brow_raise=0.1, eye_open=1.4),
}


def expression_of(name: str, intensity: float) -> Expression:
    """The named expression at an intensity (0 neutral, 1 full)."""
    full, rest = _EXPRESSIONS[name], Expression()
    return Expression(
        **{
            k: getattr(rest, k) + intensity * (getattr(full, k) - getattr(rest, k))
            for k in Expression.__annotations__
        }
    )


@dataclass(frozen=True)
class FaceLayout:
    """Where the features sit, in map coordinates (U, V)."""

    eye_u: float
    eye_v: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_v: float
    nose_v: float
    nose_width: float
    mouth_v: float
    mouth_half: float
    lip_upper: float
    lip_lower: float
    chin_v: float


def layout_of(identity: Identity) -> FaceLayout:
    """Feature positions of one identity."""
    s = identity.shape
    eye_v = 0.03 + 0.017 * s["eye_height"]
    nose_v = -0.425 - 0.021 * s["nose_length"]
    mouth_v = nose_v - 0.238 - 0.013 * s["mouth_height"]
    return FaceLayout(
        eye_u=0.335 + 0.024 * s["eye_distance"],
        eye_v=eye_v,
        eye_width=0.158 + 0.013 * s["eye_size"],
        eye_height=0.066 + 0.011 * s["eye_size"],
        eye_tilt=0.10 * s["eye_tilt"] + 0.06,
        brow_v=eye_v + 0.20 + 0.028 * s["brow_height"],
        nose_v=nose_v,
        nose_width=0.165 + 0.026 * s["nose_width"],
        mouth_v=mouth_v,
        mouth_half=0.262 + 0.021 * s["mouth_width"],
        lip_upper=max(0.045 + 0.014 * s["lip_upper"], 0.016),
        lip_lower=max(0.060 + 0.016 * s["lip_lower"], 0.022),
        chin_v=mouth_v - 0.44 - 0.04 * s["chin_length"],
    )


@dataclass(frozen=True)
class Head:
    """Maps [n, n] over (V, U): radius, colour, gloss; unit normals; landmarks [5, 3] in object space."""

    radius: np.ndarray
    colour: np.ndarray
    gloss: np.ndarray
    normal: np.ndarray
    occlusion: np.ndarray
    landmarks: np.ndarray
    max_radius: float
    hair_back: tuple[float, float] | None


def _skull(identity: Identity, directions: np.ndarray) -> np.ndarray:
    """Radius of the bare head: a rounded box, wider or narrower at the jaw, longer or shorter."""
    s = identity.shape
    dx, dy, dz = (directions[..., i] for i in range(3))
    a = 0.79 * (1 + 0.045 * s["head_width"])
    b_up = 1.18 * (1 + 0.03 * s["head_height"] + 0.02 * s["forehead"])
    b_down = 1.30 * (1 + 0.028 * s["chin_length"])
    c = 0.98 * (1 + 0.03 * s["head_depth"])
    low = smoothstep(-0.15, -0.95, dy)
    a = a * (1 - low * (0.24 - 0.055 * s["jaw_width"]))
    b = np.where(dy > 0, b_up, b_down)
    back_low = smoothstep(-0.2, -0.8, dy) * smoothstep(0.1, -0.4, dz)
    b = b * (1 - 0.25 * back_low)
    p = 2.35
    return (np.abs(dx / a) ** p + np.abs(dy / b) ** p + np.abs(dz / c) ** p) ** (-1 / p)


def _relief(canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, age: float) -> None:
    """Hills and dents of the face on the skull."""
    s = identity.shape
    open_shift = -0.55 * e.opening
    canvas.bump(
        0, f.chin_v + open_shift, 0.20 + 0.025 * s["chin_width"], 0.15, 0.085 + 0.02 * s["jaw_drop"]
    )
    canvas.bump(0, -0.78 + open_shift, 0.34, 0.28, 0.05)
    canvas.bump(0.47, -0.30, 0.17, 0.15, 0.035 + 0.015 * s["cheekbone"], mirror=True)
    canvas.bump(
        0.45,
        -0.60,
        0.17,
        0.20,
        -0.02 + 0.018 * s["cheek_full"] + 0.25 * e.corners - 0.015 * age,
        mirror=True,
    )
    canvas.bump(f.eye_u, f.brow_v - 0.02, 0.20, 0.075, 0.035 + 0.012 * s["brow_ridge"], mirror=True)
    canvas.bump(f.eye_u, f.eye_v, 0.17, 0.10, -0.085, mirror=True)
    canvas.bump(f.eye_u, f.eye_v, 0.115, 0.075, 0.055, mirror=True)
    bridge_v = 0.5 * (f.eye_v + f.nose_v)
    w = f.nose_width
    height = 0.165 + 0.02 * s["nose_height"]
    canvas.bump(0, f.eye_v + 0.02, 0.062, 0.13, 0.05 + 0.018 * s["nose_bridge"])
    canvas.bump(
        0, bridge_v, 0.062 + 0.1 * (w - 0.165), 0.15, 0.5 * height + 0.012 * s["nose_bridge"]
    )
    canvas.bump(
        0, f.nose_v + 0.05, 0.082 + 0.2 * (w - 0.165), 0.085, 0.82 * height + 0.012 * s["nose_tip"]
    )
    canvas.bump(0.72 * w, f.nose_v, 0.052, 0.055, 0.085, mirror=True)
    canvas.bump(0, f.nose_v - 0.12, 0.07, 0.06, -0.012)
    canvas.bump(
        0, f.mouth_v + 0.6 * f.lip_upper, 0.8 * f.mouth_half, 0.05, 0.036 + 0.3 * f.lip_upper
    )
    canvas.bump(
        0,
        f.mouth_v - 0.6 * f.lip_lower + open_shift,
        0.6 * f.mouth_half,
        0.05,
        0.036 + 0.3 * f.lip_lower,
    )
    canvas.bump(0, f.mouth_v - 0.17 + open_shift, 0.20, 0.05, -0.035)
    if e.opening > 0.03:
        canvas.bump(
            0, f.mouth_v - 0.5 * e.opening, 0.6 * f.mouth_half, 0.5 * e.opening, -0.9 * e.opening
        )
    canvas.bump(
        1.80, -0.08, 0.10, 0.20 + 0.02 * s["ear_size"], 0.13 + 0.03 * s["ear_size"], mirror=True
    )
    canvas.bump(0.3, 0.0, 0.5, 0.6, 0.012 * s["asymmetry"])


def _normals(radius: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Outward unit normals of the star-shaped surface, from its positions on the grid."""
    p = radius[..., None] * directions
    du = np.empty_like(p)
    dv = np.empty_like(p)
    du[:, 1:-1], du[:, 0], du[:, -1] = p[:, 2:] - p[:, :-2], p[:, 1] - p[:, 0], p[:, -1] - p[:, -2]
    dv[1:-1], dv[0], dv[-1] = p[2:] - p[:-2], p[1] - p[0], p[-1] - p[-2]
    n = np.cross(du, dv)
    return n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-9)


def _occlusion(relief: np.ndarray, texel: float) -> np.ndarray:
    """Ambient occlusion from how far a place lies below its surroundings."""
    from scipy.ndimage import gaussian_filter

    hollow = gaussian_filter(relief, 0.09 / texel, mode="nearest", truncate=2.5) - relief
    return np.clip(1 - 4.5 * np.maximum(hollow, 0), 0.35, 1).astype(np.float32)


_GRIDS: dict[int, np.ndarray] = {}


def _directions(n: int) -> np.ndarray:
    """Unit directions [n, n, 3] of the map's texels (a pure function of n, kept because it is costly)."""
    if n not in _GRIDS:
        axis = np.linspace(-EXTENT, EXTENT, n, dtype=np.float32)
        _GRIDS[n] = to_direction(axis[None, :].repeat(n, 0), axis[:, None].repeat(n, 1)).astype(
            np.float32
        )
    return _GRIDS[n]


def build_head(
    identity: Identity, expression: Expression, age: float, n: int, texture_seed: int = 0
) -> Head:
    """Build the maps at n × n texels. `texture_seed` seeds fine hair and skin grain (per identity)."""
    canvas = Canvas(n, identity.skin)
    f = layout_of(identity)
    directions = _directions(n)
    _relief(canvas, identity, f, expression, age)
    grain = np.random.default_rng(texture_seed)
    paint_face(canvas, identity, f, expression, age, grain)
    occlusion = _occlusion(canvas.relief, canvas.texel)
    thickness, back = add_hair(canvas, identity, age, grain)
    radius = (_skull(identity, directions) + canvas.relief + thickness).astype(np.float32)

    corner_v = f.mouth_v + 0.012 + 0.8 * expression.corners - 0.4 * expression.opening
    half = 0.95 * f.mouth_half * (1 + expression.stretch)
    marks = np.array(
        [
            [-f.eye_u, f.eye_v + 0.012],
            [f.eye_u, f.eye_v + 0.012],
            [0, f.nose_v + 0.072],
            [-half, corner_v],
            [half, corner_v],
        ],
        np.float64,
    )
    index = (marks + EXTENT) / canvas.texel
    at = np.clip(np.round(index).astype(int), 0, n - 1)
    landmarks = to_direction(marks[:, 0], marks[:, 1]) * radius[at[:, 1], at[:, 0], None]
    return Head(
        radius=radius,
        colour=np.clip(canvas.colour, 0, 1),
        gloss=canvas.gloss,
        normal=_normals(radius, directions).astype(np.float32),
        occlusion=occlusion,
        landmarks=landmarks,
        max_radius=float(radius.max()),
        hair_back=back,
    )


__all__ = ["SPREAD", "Expression", "FaceLayout", "Head", "build_head", "expression_of", "layout_of"]
