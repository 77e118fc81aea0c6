"""A face: where its features sit, what an expression does to them, and how they are painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_steps.demo_world.rendering.geometry import Canvas, smoothstep
from pipeline_steps.demo_world.rendering.parameters import Identity


@dataclass(frozen=True)
class Expression:
    """Muscle settings; lengths in map coordinates, the defaults are a face at rest.

    Attributes:
        corners: mouth corners up (+) or down (-).
        stretch: how much wider the mouth is, as a share of its width.
        opening: distance of the lips.
        brow_raise: whole brows up (+) or down (-).
        brow_inner: inner ends of the brows up.
        frown: inner ends of the brows down.
        eye_open: opening of the lids, relative.
        teeth: how much of them shows in an open mouth, 0 to 1.
    """

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
    """The named expression at an intensity: 0 is a face at rest, 1 full, more exaggerates.

    Raises:
        KeyError: there is no such expression.
    """
    full, rest = _EXPRESSIONS[name], vars(Expression())
    return Expression(**{k: v + intensity * (vars(full)[k] - v) for k, v in rest.items()})


@dataclass(frozen=True)
class FaceLayout:
    """Where the features sit: positions u, v and lengths in map coordinates, tilt as a slope."""

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


def paint_face(
    canvas: Canvas,
    identity: Identity,
    f: FaceLayout,
    e: Expression,
    age: float,
    grain: np.random.Generator,
) -> None:
    """Paint everything but the hair onto the canvas; a beard also raises its relief.

    Age, in [0, 1], draws wrinkles from 0.25 on and greys brows from 0.6 on; `grain` is the source
    of freckles and stubble.
    """
    _skin(canvas, f, e, age)
    if identity.freckles:
        win, u, v = canvas.window(0, -0.25, 0.7, 0.3)
        spots = grain.random((v.shape[0], u.shape[1])) < 0.16
        fade = np.exp(-((u / 0.5) ** 2) - ((v + 0.25) / 0.2) ** 2)
        canvas.shade(win, 0.5 * identity.freckles * spots * fade, (0.72, 0.58, 0.5))
    _wrinkles(canvas, f, e, max(age - 0.25, 0.0) / 0.75)
    for side in (-1, 1):
        _eye(canvas, identity, f, e, side)
    _nose(canvas, f)
    _beard(canvas, identity, f, e, grain)
    _mouth(canvas, identity, f, e)
    for side in (-1, 1):
        _brow(canvas, identity, f, e, age, side)
    for mu, mv, size in identity.moles:
        win, mask = canvas.disc(mu, mv, size, size)
        canvas.shade(win, mask * 0.85, (0.42, 0.32, 0.30))
    if identity.glasses:
        _glasses(canvas, identity, f)


def _skin(canvas: Canvas, f: FaceLayout, e: Expression, age: float) -> None:
    for side in (-1, 1):
        win, mask = canvas.disc(side * 0.45, -0.42, 0.26, 0.22, 0.25)
        canvas.shade(win, 0.6 * mask, (1.04, 0.90, 0.89))
        win, mask = canvas.disc(side * f.eye_u, f.eye_v - 0.08, 0.18, 0.07, 0.10)
        canvas.shade(win, mask, (1 - 0.10 - 0.12 * age,) * 3)


def _wrinkles(canvas: Canvas, f: FaceLayout, e: Expression, wrinkle: float) -> None:
    if wrinkle > 0:
        for k in range(3):
            win, u, v = canvas.window(0, 0.52 + 0.12 * k, 0.5, 0.08)
            height = v - 0.52 - 0.12 * k - 0.03 * np.cos(4 * u)
            line = np.exp(-((height / 0.02) ** 2)) * np.exp(-((u / 0.38) ** 4))
            canvas.shade(win, 0.5 * wrinkle * line, 0.62)
    fold = 0.25 + 0.6 * wrinkle + 4 * max(e.corners, 0)
    for side in (-1, 1):
        win, u, v = canvas.window(side * 0.3, 0.5 * (f.nose_v + f.mouth_v) - 0.04, 0.22, 0.26)
        t = np.clip((f.nose_v - v) / 0.4, 0, 1)
        line = np.exp(-(((side * u - f.nose_width - 0.02 - 0.16 * t) / 0.028) ** 2))
        line = line * (v < f.nose_v) * (1 - t)
        canvas.shade(win, 0.6 * fold * line, 0.68)
        if wrinkle > 0.1:
            win, u, v = canvas.window(side * (f.eye_u + 0.24), f.eye_v, 0.1, 0.14)
            feet = np.abs(np.sin((v - f.eye_v) * 34)) ** 6
            feet = feet * np.exp(-(((side * u - f.eye_u - 0.24) / 0.06) ** 2))
            canvas.shade(win, 0.5 * wrinkle * feet, 0.7)


def _eye(canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, side: int) -> None:
    c, w = side * f.eye_u, f.eye_width
    win, u, v = canvas.window(c, f.eye_v, 1.7 * w, 2.6 * w)
    x = side * (u - c) / w
    base = f.eye_v + f.eye_tilt * 0.5 * w * x
    arc = np.clip(1 - x * x, 0, None)
    opening = f.eye_height * e.eye_open
    upper = base + opening * arc**0.62 * (1 + 0.18 * x)
    lower = base - 0.62 * opening * arc**0.75
    inside = canvas.edge(np.minimum(upper - v, v - lower)) * (np.abs(x) < 1)
    lid = canvas.edge(upper + 0.055 - v) * canvas.edge(v - upper) * (arc > 0)
    canvas.shade(win, 0.5 * lid, 0.80)
    canvas.paint(win, inside, (0.90, 0.88, 0.86), gloss=0.9)
    canvas.shade(win, inside * smoothstep(0.045, 0.0, upper - v), 0.60)
    r = 0.074 * (1 + 0.05 * identity.shape["eye_size"])
    d = np.sqrt((u - c) ** 2 + (v - f.eye_v - 0.006) ** 2)
    canvas.paint(win, inside * canvas.edge(r - d), np.asarray(identity.iris) * 0.9)
    canvas.shade(win, inside * canvas.edge(0.02 - np.abs(d - r), 0.02), 0.45)
    canvas.paint(win, inside * canvas.edge(0.45 * r - d), (0.02, 0.02, 0.02))
    glint = np.sqrt((u - c - 0.022) ** 2 + (v - f.eye_v - 0.03) ** 2)
    canvas.paint(win, inside * canvas.edge(0.017 - glint, 0.015) * 0.9, (1, 1, 1))
    female = identity.gender == "female"
    lash = 0.030 if female else 0.018
    line = canvas.edge(lash * (0.7 + 0.5 * x) - np.abs(v - upper - 0.3 * lash)) * (np.abs(x) < 1.06)
    canvas.paint(win, line * (0.95 if female else 0.8), (0.06, 0.04, 0.04))
    line = canvas.edge(0.008 - np.abs(v - lower)) * (np.abs(x) < 0.95)
    canvas.shade(win, 0.5 * line, 0.5)
    crease = upper + 0.045 + 0.012 * identity.shape["lid"]
    line = np.exp(-(((v - crease) / 0.014) ** 2)) * (np.abs(x) < 0.95)
    canvas.shade(win, 0.6 * line, 0.60)


def _brow(
    canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, age: float, side: int
) -> None:
    s = identity.shape
    half = 0.225 + 0.016 * s["brow_length"]
    c = side * (f.eye_u + 0.01)
    win, u, v = canvas.window(c, f.brow_v + e.brow_raise, half * 1.15, 0.3)
    x = side * (u - c) / half
    inner = np.clip(-x, 0, 1) ** 1.2
    arch = 0.05 + 0.028 * s["brow_arch"]
    mid = f.brow_v + e.brow_raise + arch * (1 - (x - 0.25) ** 2) - 0.035
    mid = mid + e.brow_inner * inner - e.frown * inner - 0.35 * e.brow_inner * np.clip(x, 0, 1)
    thick = max(0.034 + 0.010 * s["brow_thickness"], 0.012) * (1 - 0.55 * np.clip(x, 0, 1))
    thick = thick * (np.abs(x) < 1)
    mask = canvas.edge(thick - np.abs(v - mid), 0.02) * (np.abs(x) < 1)
    grey = np.array([0.62, 0.61, 0.6]) * max(age - 0.6, 0)
    canvas.paint(win, 0.9 * mask, np.asarray(identity.brow) * (1 - max(age - 0.6, 0)) + grey)


def _nose(canvas: Canvas, f: FaceLayout) -> None:
    for side in (-1, 1):
        win, mask = canvas.disc(side * 0.45 * f.nose_width, f.nose_v - 0.045, 0.045, 0.022, 0.025)
        canvas.shade(win, mask, (0.18, 0.13, 0.12))
        win, mask = canvas.disc(side * 0.92 * f.nose_width, f.nose_v + 0.01, 0.028, 0.06, 0.04)
        canvas.shade(win, 0.5 * mask, 0.72)
    win, mask = canvas.disc(0, f.nose_v - 0.075, 0.12, 0.035, 0.05)
    canvas.shade(win, 0.45 * mask, 0.72)


def _mouth(canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression) -> None:
    half = f.mouth_half * (1 + e.stretch)
    win, u, v = canvas.window(0, f.mouth_v - 0.3 * e.opening, half * 1.25, 0.5)
    x = u / half
    arc = np.clip(1 - x * x, 0, None)
    line = f.mouth_v + e.corners * x * x - 0.4 * e.opening * x * x
    gap_top = line
    gap_low = line - e.opening * arc**0.7 * 1.35
    bow = 1 - 0.22 * np.exp(-((x / 0.16) ** 2))
    top = gap_top + f.lip_upper * arc**0.8 * bow
    low = gap_low - f.lip_lower * arc**0.65
    inside = np.abs(x) < 1
    lips = canvas.edge(np.minimum(top - v, v - low)) * inside
    canvas.paint(win, 0.9 * lips, identity.lips, gloss=0.5)
    canvas.shade(win, lips * canvas.edge(v - gap_top), 0.86)
    if e.opening > 0.01:
        hole = canvas.edge(np.minimum(gap_top - v, v - gap_low)) * inside
        canvas.paint(win, hole, (0.20, 0.05, 0.06), gloss=0.3)
        if e.teeth > 0:
            teeth = hole * canvas.edge(v - gap_top + 0.075) * (np.abs(x) < 0.86)
            canvas.paint(win, teeth * e.teeth, (0.93, 0.91, 0.86), gloss=0.8)
    else:
        canvas.shade(win, canvas.edge(0.012 - np.abs(v - line)) * inside, 0.35)
    corner_v = f.mouth_v + e.corners - 0.4 * e.opening
    for side in (-1, 1):
        w2, mask = canvas.disc(side * half, corner_v, 0.032, 0.028, 0.03)
        canvas.shade(w2, 0.7 * mask, 0.55)
    w2, mask = canvas.disc(0, f.mouth_v - f.lip_lower - 0.065 - 1.1 * e.opening, 0.15, 0.03, 0.05)
    canvas.shade(w2, 0.5 * mask, 0.75)


def _beard(
    canvas: Canvas, identity: Identity, f: FaceLayout, e: Expression, grain: np.random.Generator
) -> None:
    if identity.beard == "none":
        return
    shift = -0.5 * e.opening
    win, u, v = canvas.window(0, -1.15, 1.7, 1.0)
    moustache = canvas.edge(0.042 - np.abs(v - f.mouth_v - 0.105 + 0.35 * u * u), 0.06)
    moustache = moustache * smoothstep(1.15, 0.85, np.abs(u) / f.mouth_half)
    below = v - f.chin_v - 0.05 - shift
    chin = canvas.edge(1 - np.sqrt((u / 0.26) ** 2 + (below / 0.27) ** 2), 0.3)
    ring = canvas.edge(0.05 - np.abs(np.abs(u) - f.mouth_half * 1.2), 0.08)
    ring = ring * (v < f.mouth_v + 0.1) * (v > f.chin_v)
    jaw_top = -0.62 + shift + 0.62 * smoothstep(0.5, 1.35, np.abs(u))
    jaw = canvas.edge(jaw_top - v, 0.12) * smoothstep(1.9, 1.5, np.abs(u))
    lips = np.sqrt((u / f.mouth_half) ** 2 + ((v - f.mouth_v) / 0.14) ** 2)
    around_mouth = 1 - canvas.edge(1 - lips, 0.2)
    masks = {
        "stubble": 0.4 * np.maximum(jaw * around_mouth, moustache),
        "moustache": moustache,
        "goatee": np.maximum(np.maximum(moustache, ring), chin * around_mouth),
        "full": np.maximum(jaw * around_mouth, moustache),
    }
    mask = masks[identity.beard] * (0.88 + 0.12 * grain.random(jaw.shape))
    tone = 0.85 * np.asarray(identity.brow) + 0.15 * np.asarray(identity.skin)
    canvas.paint(win, 0.8 * mask, tone, gloss=0.08)
    if identity.beard in ("full", "goatee"):
        canvas.relief[win] += 0.045 * mask.astype(np.float32)


def _glasses(canvas: Canvas, identity: Identity, f: FaceLayout) -> None:
    p, frame = 2.0 if identity.glasses == "round" else 5.0, identity.glasses_colour
    for side in (-1, 1):
        c, rv, ru = side * (f.eye_u + 0.01), 0.19, 0.245
        win, u, v = canvas.window(c, f.eye_v - 0.02, 0.34, 0.3)
        d = (np.abs((u - c) / ru) ** p + np.abs((v - f.eye_v + 0.02) / rv) ** p) ** (1 / p)
        rim = canvas.edge(0.022 - np.abs(d - 1) * 0.2, 0.012)
        canvas.paint(win, rim, frame, gloss=0.8)
        win, u, v = canvas.window(side * 0.98, f.eye_v + 0.03, 0.45, 0.05)
        temple = canvas.edge(0.022 - np.abs(v - f.eye_v - 0.03)) * (side * u > f.eye_u + 0.24)
        canvas.paint(win, temple, frame)
    win, u, v = canvas.window(0, f.eye_v + 0.04, f.eye_u - 0.22, 0.06)
    bridge = canvas.edge(0.02 - np.abs(v - f.eye_v - 0.04 + 0.2 * u * u))
    canvas.paint(win, bridge, frame, gloss=0.8)
