"""Hair: a thickness over the skull with a style's outline, and long hair's extent behind the neck."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline_steps.demo_world.canvas import Canvas, smoothstep
from pipeline_steps.demo_world.identity import Identity

_THICKNESS = {
    "bald": 0.0,
    "short": 0.075,
    "fringe": 0.11,
    "side": 0.12,
    "bob": 0.15,
    "long": 0.13,
    "curly": 0.22,
}


def add_hair(
    canvas: Canvas, identity: Identity, age: float, grain: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Paint the hair; return its thickness map [n, n] and, for long styles, (half width, length) behind the head."""
    style = identity.hair_style
    grey = smoothstep(0.5, 1.0, np.float64(age)) * 0.85
    colour = np.asarray(identity.hair) * (1 - grey) + np.array([0.70, 0.69, 0.68]) * grey
    if style == "bald":
        return np.zeros_like(canvas.relief), None
    u, v = canvas.axis[None, :], canvas.axis[:, None]
    au = np.abs(u)
    line = 0.80 + 0.05 * identity.hairline
    if style == "short":
        top = line + 0.10 - 0.10 * au * au
        side_bottom = 0.10
    elif style == "fringe":
        top = 0.42 + 0.02 * identity.hairline + 0.02 * np.sin(u * 30 + 9 * identity.parting)
        side_bottom = -0.1
    elif style == "side":
        p = 0.45 * np.sign(identity.parting or 1.0)
        top = (
            line
            - 0.04
            - 0.35 * np.clip((u - p) * -np.sign(p), 0, 0.7) * 0.55
            + 0.06 * np.clip((u - p) * np.sign(p), 0, 1)
        )
        side_bottom = 0.0
    elif style == "curly":
        top = line - 0.06 + 0.05 * np.sin(u * 17 + 5 * identity.parting)
        side_bottom = -0.15
    else:
        p = 0.35 * identity.parting
        top = line + 0.06 - 0.55 * np.minimum(np.abs(u - p), 0.9) ** 1.6
        side_bottom = -1.1 if style == "bob" else -1.6
    temple = {
        "short": 1.02,
        "fringe": 0.92,
        "side": 0.98,
        "curly": 0.94,
        "bob": 0.90,
        "long": 0.88,
    }[style]
    above = canvas.edge(v - top, 0.05)
    beside = canvas.edge(
        au - (temple + 0.16 * smoothstep(0.35, -0.9, v) * (style in ("bob", "long"))), 0.06
    )
    beside = beside * canvas.edge(v - side_bottom, 0.12)
    behind_ear = (au > 1.95) | (np.sqrt(u * u + v * v) > 2.2)
    ear = np.exp(-(((au - 1.72) / 0.16) ** 2) - ((v + 0.12) / 0.26) ** 2)
    mask = np.maximum(above, beside)
    if style in ("short", "fringe", "side"):
        mask = mask * (1 - canvas.edge(ear - 0.3, 0.3) * (v < 0.2))
    nape = canvas.edge(v + 1.35 + 0.15 * (style in ("bob", "long")), 0.1)
    mask = np.maximum(mask, behind_ear * nape).astype(np.float32)
    strands = 0.5 + 0.2 * np.sin(
        34 * u + 11 * np.sin(2.1 * v + 3 * identity.parting) + 6 * grain.random() * v
    )
    strands = strands + 0.2 * np.sin(61 * u + 7 * np.sin(1.3 * v + 5 * identity.parting))
    if style == "curly":
        strands = np.abs(np.sin(21 * u + 4 * np.sin(9 * v)) * np.sin(19 * v + 4 * np.sin(8 * u)))
    everything = (slice(None), slice(None))
    canvas.paint(
        everything, mask, colour[None, None, :] * (0.72 + 0.5 * strands[..., None]), gloss=0.35
    )
    soft = gaussian_filter(mask, 0.045 / canvas.texel, mode="nearest", truncate=2.5)
    thickness = _THICKNESS[style] * soft * smoothstep(-1.3, -0.3, v)
    if style == "curly":
        thickness = thickness * (0.9 + 0.15 * strands)
    back = {"bob": (0.98, 1.15), "long": (1.05, 2.3)}.get(style)
    return thickness.astype(np.float32), back
