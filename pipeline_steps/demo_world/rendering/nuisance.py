"""What differs between two photographs of one person: pose, expression, light, place, age, ..."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "shocked")
PLACES = (
    "none",
    "forest",
    "city street",
    "beach",
    "office",
    "bus",
    "laboratory",
    "factory",
    "construction site",
    "hospital",
    "night club",
)


@dataclass(frozen=True)
class Nuisance:
    """One photograph's circumstances.

    Attributes:
        yaw: degrees; > 0 turns the head towards the image's right.
        pitch: degrees; > 0 raises the chin.
        roll: degrees; > 0 is clockwise in the image.
        expression: one of EXPRESSIONS.
        intensity: of the expression, 0 none, 1 full.
        place: one of PLACES.
        age: in [0, 1]; greys hair and draws wrinkles.
        scale: interpupillary distance at yaw 0 as a fraction of the image's width.
        shift: of the face to the right and down, fractions of the width.
        light_azimuth, light_elevation: where the key light comes from, degrees; azimuth > 0 is to
            the image's right.
        light_power, ambient: strength of the key light and of the light from everywhere.
        warmth: share by which red is raised and blue lowered.
        exposure: factor on the finished picture.
        camera_distance: from the head's centre, decimetres.
        noise: standard deviation of the sensor's noise, of full scale.
        blur: standard deviation of the lens's blur, 1 / 64 of the width.
        shirt: RGB in [0, 1].
        seed: of the background's details and the noise.
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


def random_shirt(rng: np.random.Generator) -> tuple[float, float, float]:
    """A clothing colour, often muted, RGB in [0, 1]."""
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
    """Unconstrained photographs (FFHQ's role): any light, age and distance.

    Args:
        rng: source of the draws.
        max_yaw: degrees; yaw is normal with 0.42 of it as standard deviation, clipped there.
        place, expression: None draws one.
    """
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
    """The constrained capture of the Tufts Face Database: one session with a camera rig.

    Args:
        rng: source of small deviations.
        camera: 1 ... 3; they differ in height (pitch) and colour response.
        position: 0 ... 8 on a semicircle, from -53 to 53 degrees of yaw, 13.2 apart: poses 1 ... 7
            then spread as much as was measured on the database (26.3 degrees).
        shirt: what the participant wears, RGB.
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
