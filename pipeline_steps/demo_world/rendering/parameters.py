"""What a photograph depends on: who is in it, and under which circumstances it was taken.

Lengths are in decimetres (interpupillary distance about 0.63), colours are linear-ish RGB in
[0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_steps.seeds import numpy_generator

Array = np.ndarray
Colour = tuple[float, float, float]

HAIR_STYLES = ("bald", "short", "fringe", "side", "bob", "long", "curly")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GENDERS = ("male", "female")
SHAPE_NAMES = (
    *("head_width", "head_height", "head_depth"),
    *("jaw_width", "jaw_drop", "chin_length", "chin_width"),
    *("cheekbone", "cheek_full", "brow_ridge", "forehead"),
    *("eye_distance", "eye_size", "eye_tilt", "eye_height", "lid"),
    *("brow_height", "brow_thickness", "brow_arch", "brow_length"),
    *("nose_length", "nose_width", "nose_height", "nose_tip", "nose_bridge"),
    *("mouth_width", "mouth_height", "lip_upper", "lip_lower"),
    *("ear_size", "asymmetry"),
)

# Mean difference of men from the population, in standard deviations; women differ the other way.
_MALE_SHIFT = {
    "jaw_width": 0.5,
    "brow_ridge": 0.6,
    "brow_thickness": 0.6,
    "nose_width": 0.3,
    "chin_width": 0.4,
    "eye_size": -0.4,
    "lip_upper": -0.4,
    "lip_lower": -0.4,
    "brow_arch": -0.4,
}
_MAX_SHAPE = 2.2  # standard deviations
_LIGHT_TONE = 0.45  # below it, light hair and eyes are common

_SKIN_LIGHT = np.array([0.93, 0.76, 0.66])
_SKIN_MEDIUM = np.array([0.76, 0.55, 0.41])
_SKIN_DARK = np.array([0.33, 0.21, 0.15])
_HAIR = np.array(
    [
        [0.06, 0.05, 0.05],
        [0.18, 0.11, 0.07],
        [0.36, 0.22, 0.12],
        [0.62, 0.44, 0.22],
        [0.82, 0.68, 0.42],
        [0.50, 0.20, 0.09],
        [0.62, 0.61, 0.60],
    ]
)
_HAIR_ODDS = np.array([0.26, 0.26, 0.17, 0.10, 0.07, 0.07, 0.07])
_IRIS = np.array(
    [
        [0.20, 0.12, 0.07],
        [0.36, 0.22, 0.10],
        [0.30, 0.42, 0.25],
        [0.28, 0.45, 0.66],
        [0.45, 0.50, 0.54],
    ]
)
_IRIS_ODDS = {True: [0.35, 0.25, 0.12, 0.18, 0.10], False: [0.7, 0.24, 0.03, 0.02, 0.01]}
_LIPS_MALE = np.array([0.88, 0.54, 0.54])  # of the skin's colour
_LIPS_FEMALE = np.array([0.95, 0.55, 0.56])
_LIPSTICK = np.array([0.6, 0.1, 0.15])
_GLASSES = np.array(
    [
        [0.04, 0.04, 0.05],
        [0.30, 0.15, 0.07],
        [0.55, 0.08, 0.1],
        [0.15, 0.2, 0.45],
        [0.6, 0.58, 0.5],
    ]
)
_HAIR_STYLE_ODDS = {
    "male": [0.13, 0.34, 0.18, 0.20, 0.01, 0.04, 0.10],
    "female": [0.005, 0.07, 0.14, 0.12, 0.24, 0.31, 0.115],
}
_BEARD_ODDS = [0.45, 0.2, 0.08, 0.09, 0.18]


@dataclass(frozen=True)
class Identity:
    """Shape, colours and marks of one rendered person.

    Attributes:
        gender: one of GENDERS.
        shape: offset of each of SHAPE_NAMES, about N(0, 1), scaled by the head model to anatomical
            ranges.
        skin, hair, brow, iris, lips: colours.
        hair_style: one of HAIR_STYLES.
        hairline: offset of the hairline's height, N(0, 1).
        parting: where the hair parts, -1 left to 1 right.
        beard: one of BEARDS.
        glasses: "round", "square" or None.
        glasses_colour: of the frame.
        moles: (u, v, radius) each, in the map coordinates of geometry.py.
        freckles: strength, 0 none to 1.
    """

    gender: str
    shape: dict[str, float]
    skin: Colour
    hair: Colour
    brow: Colour
    iris: Colour
    lips: Colour
    hair_style: str
    hairline: float
    parting: float
    beard: str
    glasses: str | None
    glasses_colour: Colour
    moles: tuple[tuple[float, float, float], ...]
    freckles: float


def sample_identity(seed: int, *keys: str | int) -> Identity:
    """Draw one person from the population; the same (seed, keys) always gives the same person."""
    # The order of the draws is part of who everybody is: what is added later is drawn last.
    rng = numpy_generator(seed, "identity", *keys)
    male = bool(rng.random() < 0.5)
    gender = "male" if male else "female"
    shape = {name: float(np.clip(rng.normal(), -_MAX_SHAPE, _MAX_SHAPE)) for name in SHAPE_NAMES}
    for name, shift in _MALE_SHIFT.items():
        shape[name] += shift if male else -shift
    tone = float(rng.beta(1.1, 1.1))
    skin = _skin(tone) * (1 + rng.normal(0, 0.022, 3))
    light = tone < _LIGHT_TONE
    odds = _HAIR_ODDS * np.where(np.arange(7) >= 3, 1.0 if light else 0.15, 1.0)
    hair = _HAIR[rng.choice(7, p=odds / odds.sum())] * (1 + rng.normal(0, 0.05, 3))
    brow = hair * rng.uniform(0.5, 0.9)
    iris = _IRIS[rng.choice(5, p=_IRIS_ODDS[light])]
    lips = _lips(rng, skin, male)
    beard = str(rng.choice(BEARDS, p=_BEARD_ODDS)) if male else "none"
    glasses = str(rng.choice(["round", "square"])) if rng.random() < 0.16 else None
    moles = tuple(_mole(rng) for _ in range(int(rng.poisson(0.8))))
    return Identity(
        gender=gender,
        shape=shape,
        skin=_rgb(skin),
        hair=_rgb(hair),
        brow=_rgb(brow),
        iris=_rgb(iris * (1 + rng.normal(0, 0.1, 3))),
        lips=_rgb(lips),
        hair_style=str(rng.choice(HAIR_STYLES, p=_HAIR_STYLE_ODDS[gender])),
        hairline=float(rng.normal(0, 1)),
        parting=float(rng.uniform(-1, 1)),
        beard=beard,
        glasses=glasses,
        glasses_colour=_rgb(rng.choice(_GLASSES)),
        moles=moles,
        freckles=float(rng.random() < 0.15) * float(rng.uniform(0.4, 1.0)) * float(tone < 0.4),
    )


def _skin(tone: float) -> Array:
    """Skin colour [3] of a tone from 0, light, over 0.5 to 1, dark."""
    if tone < 0.5:
        return _SKIN_LIGHT + (_SKIN_MEDIUM - _SKIN_LIGHT) * tone * 2
    return _SKIN_MEDIUM + (_SKIN_DARK - _SKIN_MEDIUM) * (tone * 2 - 1)


def _lips(rng: np.random.Generator, skin: Array, male: bool) -> Array:
    """Lips [3] somewhat redder than the skin; women's with some lipstick."""
    if male:
        return skin * _LIPS_MALE
    made_up = rng.beta(1, 2)
    return skin * _LIPS_FEMALE * (1 - 0.5 * made_up) + _LIPSTICK * 0.5 * made_up


def _mole(rng: np.random.Generator) -> tuple[float, float, float]:
    u, v, radius = rng.uniform(-0.65, 0.65), rng.uniform(-1.0, 0.75), rng.uniform(0.022, 0.045)
    return float(u), float(v), float(radius)


def _rgb(values: Array) -> Colour:
    r, g, b = np.clip(values, 0.01, 0.98)
    return float(r), float(g), float(b)


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
    shirt: Colour = (0.35, 0.37, 0.45)
    seed: int = 0


def random_shirt(rng: np.random.Generator) -> Colour:
    """A clothing colour, often muted."""
    return _rgb(np.clip(rng.uniform(0.08, 0.85) + rng.normal(0, 0.18, 3), 0.03, 0.95))


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
    rng: np.random.Generator, *, camera: int, position: int, shirt: Colour
) -> Nuisance:
    """The constrained capture of the Tufts Face Database: one session with a camera rig.

    Args:
        rng: source of small deviations.
        camera: 1 ... 3; they differ in height (pitch) and colour response.
        position: 0 ... 8 on a semicircle, from -53 to 53 degrees of yaw, 13.2 apart: poses 1 ... 7
            then spread as much as was measured on the database (26.3 degrees).
        shirt: what the participant wears.
    """
    return Nuisance(
        yaw=float((position - 4) * 13.2 + rng.normal(0, 1.2)),
        pitch=float((camera - 2) * 5.0 + rng.normal(0, 1.2)),
        roll=float(rng.normal(0, 1.2)),
        scale=0.085,
        light_azimuth=float(rng.normal(0, 4)),
        light_elevation=32.0,
        warmth=(camera - 2) * 0.015,
        noise=0.008,
        blur=0.2,
        shirt=shirt,
        seed=int(rng.integers(2**31)),
    )
