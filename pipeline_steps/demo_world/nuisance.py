"""What differs between two photographs of one person: pose, expression, light, lens, place, age, noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "shocked")
PLACES = (
    "none", "forest", "city street", "beach", "office", "bus", "laboratory", "factory", "construction site",
    "hospital", "night club",
)  # fmt: skip


@dataclass(frozen=True)
class Nuisance:
    """One photograph's circumstances.

    Angles in degrees: yaw > 0 turns the head towards the image's right, pitch > 0 raises the chin, roll > 0 is
    clockwise in the image. `scale` is the face's interpupillary distance as a fraction of the image width at yaw 0;
    `shift` moves the face, in fractions of the width. `age` in [0, 1] greys hair and draws wrinkles.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    expression: str = "neutral"
    intensity: float = 1.0
    place: str = "none"
    age: float = 0.2
    scale: float = 0.215
    shift: tuple[float, float] = (0.0, 0.0)
    light_azimuth: float = 20.0
    light_elevation: float = 35.0
    light_power: float = 0.75
    ambient: float = 0.55
    warmth: float = 0.0
    exposure: float = 1.0
    camera_distance: float = 8.0
    noise: float = 0.01
    blur: float = 0.0
    shirt: tuple[float, float, float] = (0.35, 0.37, 0.45)
    seed: int = 0
    tags: dict[str, str] = field(default_factory=dict)


def random_shirt(rng: np.random.Generator) -> tuple[float, float, float]:
    """A clothing colour, often muted."""
    grey = rng.uniform(0.08, 0.85)
    colour = np.clip(grey + rng.normal(0, 0.18, 3), 0.03, 0.95)
    return float(colour[0]), float(colour[1]), float(colour[2])


def in_the_wild(
    rng: np.random.Generator,
    *,
    max_yaw: float = 45.0,
    place: str | None = None,
    expression: str | None = None,
) -> Nuisance:
    """Unconstrained photographs (FFHQ's role): any place, light, expression; yaw mostly small, up to `max_yaw`."""
    return Nuisance(
        yaw=float(np.clip(rng.normal(0, 0.42 * max_yaw), -max_yaw, max_yaw)),
        pitch=float(np.clip(rng.normal(0, 5), -14, 14)),
        roll=float(np.clip(rng.normal(0, 3.2), -10, 10)),
        expression=expression or str(rng.choice(EXPRESSIONS)),
        intensity=float(rng.uniform(0.75, 1.1)),
        place=place or str(rng.choice(PLACES)),
        age=float(np.clip(rng.beta(1.3, 3.0), 0, 1)),
        scale=float(rng.uniform(0.20, 0.235)),
        shift=(float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02))),
        light_azimuth=float(rng.uniform(-65, 65)),
        light_elevation=float(rng.uniform(5, 60)),
        light_power=float(rng.uniform(0.45, 0.95)),
        ambient=float(rng.uniform(0.42, 0.68)),
        warmth=float(rng.normal(0, 0.05)),
        exposure=float(np.clip(rng.normal(1, 0.1), 0.75, 1.25)),
        camera_distance=float(rng.uniform(6, 11)),
        noise=float(rng.uniform(0.003, 0.014)),
        blur=float(rng.uniform(0, 0.3)),
        shirt=random_shirt(rng),
        seed=int(rng.integers(2**31)),
    )


def laboratory_capture(
    rng: np.random.Generator, *, camera: int, position: int, shirt: tuple[float, float, float]
) -> Nuisance:
    """The constrained capture of the Tufts Face Database: nine positions on a semicircle, a camera rig, one session.

    Position 0..8 runs from -53 to +53 degrees of yaw (13.2 apart: the 26.3 degree spread measured on TFD); cameras 1..3 differ in height (pitch) and colour response.
    """
    base = Nuisance()
    return replace(
        base,
        yaw=float((position - 4) * 13.2 + rng.normal(0, 1.2)),
        pitch=float((camera - 2) * 5.0 + rng.normal(0, 1.2)),
        roll=float(rng.normal(0, 1.2)),
        expression="neutral",
        place="none",
        scale=0.085,
        light_azimuth=float(rng.normal(0, 4)),
        light_elevation=32.0,
        warmth=(camera - 2) * 0.015,
        noise=0.008,
        blur=0.2,
        shirt=shirt,
        seed=int(rng.integers(2**31)),
    )
