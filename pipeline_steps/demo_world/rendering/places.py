"""Backgrounds of the ten places of the complex prompts, and the plain studio wall ("none").

Each painter draws on a square grid in coordinates x, y in [0, 1] (y down), from its own generator,
so that two photographs of a place share its look and not its details.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Painter = Callable[["Scene", np.random.Generator], None]

_LIQUIDS = np.array([(0.1, 0.75, 0.7), (0.85, 0.2, 0.65), (0.95, 0.7, 0.1), (0.2, 0.4, 0.95)])
_BEAMS = np.array([(1, 0.05, 0.7), (0.1, 0.3, 1), (0.6, 0.05, 1), (0.05, 0.9, 0.8)])
_LAMPS = np.array([(1, 0.2, 0.8), (0.3, 0.5, 1), (1, 0.8, 0.3)])


class Scene:
    """A square image [n, n, 3] in [0, 1] with a few drawing primitives."""

    def __init__(self, n: int) -> None:
        self.image = np.zeros((n, n, 3), np.float32)
        axis = (np.arange(n, dtype=np.float32) + 0.5) / n
        self.x, self.y = axis[None, :], axis[:, None]

    def gradient(self, top: Array, bottom: Array) -> None:
        """Fill with a vertical gradient from one colour to another, RGB."""
        t = self.y[..., None]
        self.image[:] = np.asarray(top, np.float32) * (1 - t) + np.asarray(bottom, np.float32) * t

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Array, alpha: float = 1.0
    ) -> None:
        """Fill a rectangle, cut off at the image's border, with a colour of opacity `alpha`."""
        n = self.image.shape[0]
        j0, j1, i0, i1 = (round(np.clip(c, 0, 1) * n) for c in (x0, x1, y0, y1))
        part = self.image[i0:i1, j0:j1]
        part += alpha * (np.asarray(colour, np.float32) - part)

    def blob(
        self, cx: float, cy: float, rx: float, ry: float, colour: Array, alpha: float = 1.0
    ) -> None:
        """Fill a soft ellipse with half axes (rx, ry) with a colour of opacity `alpha`."""
        d = ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2
        m = (alpha * np.clip(1.6 - 1.6 * d, 0, 1))[..., None]
        self.image += m * (np.asarray(colour, np.float32) - self.image)


def _vary(rng: np.random.Generator, colour: tuple[float, float, float], sd: float = 0.04) -> Array:
    return np.clip(np.asarray(colour) * (1 + rng.normal(0, sd)) + rng.normal(0, sd * 0.5, 3), 0, 1)


def _none(s: Scene, g: np.random.Generator) -> None:
    wall = np.clip(g.uniform(0.55, 0.8) + g.normal(0, 0.012, 3), 0, 1)
    s.gradient(wall * 1.05, wall * 0.88)


def _forest(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.35, 0.55, 0.25)), _vary(g, (0.12, 0.25, 0.08)))
    for _ in range(14):
        cx, cy, rx, ry = g.uniform((0, 0, 0.06, 0.05), (1, 0.75, 0.16, 0.12)).tolist()
        leaf = (0.16, 0.42, 0.10) if g.random() < 0.6 else (0.45, 0.66, 0.25)
        s.blob(cx, cy, rx, ry, _vary(g, leaf, 0.15), 0.75)
    for _ in range(int(g.integers(3, 6))):
        x, w = g.random(), g.uniform(0.02, 0.05)
        s.box(x, 0, x + w, 1, _vary(g, (0.26, 0.17, 0.09), 0.1))


def _city(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.72, 0.78, 0.85)), _vary(g, (0.60, 0.60, 0.62)))
    x = -0.05
    while x < 1:
        w, top = g.uniform(0.16, 0.3), g.uniform(0.02, 0.3)
        tone = _vary(g, (0.48, 0.45, 0.44) if g.random() < 0.6 else (0.58, 0.38, 0.32), 0.1)
        s.box(x, top, x + w - 0.015, 0.82, tone)
        lit = _vary(g, (0.85, 0.82, 0.62) if g.random() < 0.5 else (0.28, 0.33, 0.42), 0.05)
        for yy in np.arange(top + 0.04, 0.74, 0.10):
            for xx in np.arange(x + 0.025, x + w - 0.05, 0.075):
                s.box(xx, yy, xx + 0.04, yy + 0.06, lit)
        x += w
    s.box(0, 0.82, 1, 1, _vary(g, (0.25, 0.25, 0.27)))


def _beach(s: Scene, g: np.random.Generator) -> None:
    horizon, shore = g.uniform(0.34, 0.44), g.uniform(0.62, 0.72)
    s.gradient(_vary(g, (0.42, 0.70, 0.96)), _vary(g, (0.78, 0.90, 1.0)))
    s.box(0, horizon, 1, shore, _vary(g, (0.08, 0.48, 0.66)))
    for _ in range(4):
        y = g.uniform(horizon + 0.04, shore)
        s.box(0, y, 1, y + 0.012, _vary(g, (0.75, 0.9, 0.95)), 0.7)
    s.box(0, shore, 1, 1, _vary(g, (0.93, 0.82, 0.58)))
    s.blob(g.uniform(0.05, 0.95), g.uniform(0.03, 0.15), 0.14, 0.05, np.ones(3), 0.8)


def _office(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.88, 0.85, 0.78)), _vary(g, (0.74, 0.69, 0.60)))
    side = g.random() < 0.5
    for k in range(4):
        y = 0.05 + 0.13 * k
        x0, x1 = (0.0, 0.36) if side else (0.64, 1.0)
        s.box(x0, y + 0.10, x1, y + 0.125, _vary(g, (0.42, 0.28, 0.16)))
        x = x0 + 0.01
        while x < x1 - 0.05:
            w = g.uniform(0.018, 0.045)
            s.box(x, y + g.uniform(0.01, 0.04), x + w, y + 0.10, g.uniform(0.1, 0.8, 3))
            x += w + 0.004
    x0 = 0.66 if side else 0.04
    s.box(x0, 0.34, x0 + 0.30, 0.56, np.array([0.08, 0.09, 0.11]))
    s.box(x0 + 0.02, 0.36, x0 + 0.28, 0.54, _vary(g, (0.45, 0.62, 0.85)))
    s.box(0, 0.66, 1, 0.72, _vary(g, (0.55, 0.38, 0.22)))


def _bus(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.62, 0.66, 0.70)), _vary(g, (0.20, 0.26, 0.48)))
    s.box(0, 0.0, 1, 0.08, _vary(g, (0.80, 0.82, 0.84)))
    for k in range(3):
        x = -0.1 + 0.42 * k + g.uniform(-0.05, 0.05)
        s.box(x, 0.12, x + 0.34, 0.50, np.array([0.10, 0.11, 0.13]))
        s.box(x + 0.015, 0.135, x + 0.325, 0.485, _vary(g, (0.66, 0.80, 0.90), 0.08))
    for k in range(3):
        x = 0.02 + 0.38 * k + g.uniform(-0.04, 0.04)
        s.box(x, 0.60, x + 0.28, 1.0, _vary(g, (0.16, 0.22, 0.62)))
    for _ in range(2):
        x = g.choice([g.uniform(0.02, 0.25), g.uniform(0.75, 0.96)])
        s.box(x, 0, x + 0.028, 1, _vary(g, (0.95, 0.78, 0.10)))


def _laboratory(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.90, 0.96, 0.98)), _vary(g, (0.72, 0.86, 0.90)))
    for k in range(2):
        y = 0.22 + 0.26 * k
        s.box(0, y, 1, y + 0.02, _vary(g, (0.55, 0.62, 0.66)))
        x = g.uniform(0, 0.06)
        while x < 0.98:
            h, w = g.uniform(0.07, 0.16), g.uniform(0.03, 0.06)
            liquid = _LIQUIDS[g.integers(4)]
            s.box(x, y - h, x + w, y, np.array([0.80, 0.90, 0.93]))
            s.box(x + 0.004, y - 0.6 * h, x + w - 0.004, y, liquid)
            x += w + g.uniform(0.02, 0.07)
    s.box(0, 0.72, 1, 1, _vary(g, (0.96, 0.97, 0.98)))


def _factory(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.20, 0.21, 0.23)), _vary(g, (0.34, 0.33, 0.32)))
    for k in range(4):
        y = 0.04 + 0.15 * k + g.uniform(-0.02, 0.02)
        s.box(0, y, 1, y + 0.045, _vary(g, (0.50, 0.52, 0.55), 0.1))
        s.box(0, y + 0.03, 1, y + 0.045, np.array([0.15, 0.15, 0.16]))
    for _ in range(3):
        x, y = g.random(), g.uniform(0.2, 0.8)
        s.blob(x, y, 0.10, 0.10, _vary(g, (0.62, 0.33, 0.12)))
        s.blob(x, y, 0.045, 0.045, np.array([0.12, 0.12, 0.12]))
    for _ in range(2):
        x = g.choice([g.uniform(0.0, 0.25), g.uniform(0.75, 0.95)])
        s.box(x, 0.05, x + 0.07, 1, _vary(g, (0.55, 0.28, 0.12)))


def _construction(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.66, 0.74, 0.84)), _vary(g, (0.70, 0.58, 0.42)))
    for k in range(5):
        x = 0.02 + 0.24 * k + g.uniform(-0.03, 0.03)
        s.box(x, 0.05, x + 0.035, 1, _vary(g, (0.96, 0.52, 0.06)))
    for k in range(4):
        y = 0.12 + 0.2 * k + g.uniform(-0.03, 0.03)
        s.box(0, y, 1, y + 0.03, _vary(g, (0.96, 0.52, 0.06)))
    for k in range(6):
        s.box(0.17 * k, 0.74, 0.17 * k + 0.085, 0.82, np.array([0.98, 0.84, 0.05]))
        s.box(0.17 * k + 0.085, 0.74, 0.17 * k + 0.17, 0.82, np.array([0.07, 0.07, 0.07]))
    s.box(0, 0.82, 1, 1, _vary(g, (0.56, 0.42, 0.26)))


def _hospital(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.82, 0.93, 0.86)), _vary(g, (0.66, 0.82, 0.74)))
    x = g.uniform(0.0, 0.12) if g.random() < 0.5 else g.uniform(0.66, 0.78)
    s.box(x, 0.10, x + 0.22, 0.32, np.ones(3))
    s.box(x + 0.09, 0.13, x + 0.13, 0.29, np.array([0.85, 0.08, 0.10]))
    s.box(x + 0.03, 0.19, x + 0.19, 0.23, np.array([0.85, 0.08, 0.10]))
    for k in range(6):
        xx = k / 6 + g.uniform(-0.02, 0.02)
        s.box(xx, 0.42, xx + 0.07, 0.80, _vary(g, (0.36, 0.70, 0.62)), 0.75)
    s.box(0, 0.36, 1, 0.385, _vary(g, (0.75, 0.78, 0.78)))
    s.box(0, 0.80, 1, 1, _vary(g, (0.97, 0.98, 0.99)))


def _night_club(s: Scene, g: np.random.Generator) -> None:
    s.gradient(_vary(g, (0.10, 0.02, 0.18)), _vary(g, (0.03, 0.01, 0.08)))
    for _ in range(5):
        x, w = g.random(), g.uniform(0.03, 0.07)
        slope = g.uniform(-0.5, 0.5)
        beam = np.exp(-(((s.x - x - slope * s.y) / w) ** 2))[..., None]
        s.image += beam * 0.6 * _BEAMS[g.integers(4)]
    for _ in range(12):
        r = g.uniform(0.015, 0.04)
        s.blob(g.random(), g.random(), r, r, _LAMPS[g.integers(3)])


_PAINTERS: dict[str, Painter] = {
    "none": _none,
    "forest": _forest,
    "city street": _city,
    "beach": _beach,
    "office": _office,
    "bus": _bus,
    "laboratory": _laboratory,
    "factory": _factory,
    "construction site": _construction,
    "hospital": _hospital,
    "night club": _night_club,
}


def paint_place(name: str, n: int, rng: np.random.Generator) -> Array:
    """Draw a place.

    Args:
        name: one of PLACES.
        n: side, pixels.
        rng: source of the details.

    Returns:
        float32 [n, n, 3], RGB in [0, 1].

    Raises:
        KeyError: there is no such place.
    """
    scene = Scene(n)
    _PAINTERS[name](scene, rng)
    return np.clip(scene.image, 0, 1)
