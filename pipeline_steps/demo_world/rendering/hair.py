"""Hair: a thickness over the skull with a style's outline, and what hangs behind the neck."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline_steps.demo_world.rendering.canvas import Array, Canvas, smoothstep
from pipeline_steps.demo_world.rendering.identity import Identity

GREY = np.array([0.70, 0.69, 0.68])  # RGB


@dataclass(frozen=True)
class _Style:
    """What a style is like.

    Attributes:
        thickness: decimetres.
        temple: |U| from which on hair covers the side of the face.
        back: (half width, length) of what hangs behind the neck, decimetres.
    """

    thickness: float
    temple: float
    back: tuple[float, float] | None = None

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
    """Paint the hair.

    Args:
        canvas: to paint on; its colour and gloss change, its relief does not.
        identity: whose hair.
        age: in [0, 1]; hair greys from 0.5 on.
        grain: source of the strands' waves.

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
    canvas.paint(
        everything, mask, colour[None, None, :] * (0.72 + 0.5 * strands[..., None]), gloss=0.35
    )
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
        p = 0.45 * np.sign(identity.parting or 1.0)
        top = (
            line
            - 0.04
            - 0.35 * np.clip((u - p) * -np.sign(p), 0, 0.7) * 0.55
            + 0.06 * np.clip((u - p) * np.sign(p), 0, 1)
        )
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
