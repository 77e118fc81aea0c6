"""Who a rendered person is: the parameters that stay the same in every photograph of them.

Lengths are in decimetres (interpupillary distance about 0.63), colours are linear-ish RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_steps.seeds import numpy_generator

HAIR_STYLES = ("bald", "short", "fringe", "side", "bob", "long", "curly")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GENDERS = ("male", "female")

_SKIN_LIGHT = np.array([0.93, 0.76, 0.66])
_SKIN_MEDIUM = np.array([0.76, 0.55, 0.41])
_SKIN_DARK = np.array([0.33, 0.21, 0.15])
_HAIR = np.array(
    [[0.06, 0.05, 0.05], [0.18, 0.11, 0.07], [0.36, 0.22, 0.12], [0.62, 0.44, 0.22],
     [0.82, 0.68, 0.42], [0.50, 0.20, 0.09], [0.62, 0.61, 0.60]]
)  # fmt: skip
_HAIR_ODDS = np.array([0.26, 0.26, 0.17, 0.10, 0.07, 0.07, 0.07])
_IRIS = np.array(
    [[0.20, 0.12, 0.07], [0.36, 0.22, 0.10], [0.30, 0.42, 0.25], [0.28, 0.45, 0.66], [0.45, 0.50, 0.54]]
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Shape, colours and marks of one rendered person.

    `shape` holds named offsets, each about N(0, 1), that the head model scales to anatomical ranges.
    """

    gender: str
    shape: dict[str, float]
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    brow: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    hair_style: str
    hairline: float
    parting: float
    beard: str
    glasses: str | None
    glasses_colour: tuple[float, float, float]
    moles: tuple[tuple[float, float, float], ...]
    freckles: float


SHAPE_NAMES = (
    "head_width", "head_height", "head_depth", "jaw_width", "jaw_drop", "chin_length", "chin_width",
    "cheekbone", "cheek_full", "brow_ridge", "forehead", "eye_distance", "eye_size", "eye_tilt", "eye_height",
    "lid", "brow_height", "brow_thickness", "brow_arch", "brow_length", "nose_length", "nose_width",
    "nose_height", "nose_tip", "nose_bridge", "mouth_width", "mouth_height", "lip_upper", "lip_lower",
    "ear_size", "asymmetry",
)  # fmt: skip


def _rgb(values: np.ndarray) -> tuple[float, float, float]:
    r, g, b = np.clip(values, 0.01, 0.98)
    return float(r), float(g), float(b)


def sample_identity(seed: int, *keys: str | int) -> Identity:
    """Draw one person from the population; the same (seed, keys) always gives the same person."""
    rng = numpy_generator(seed, "identity", *keys)
    male = bool(rng.random() < 0.5)
    shape = {name: float(np.clip(rng.normal(), -2.2, 2.2)) for name in SHAPE_NAMES}
    for name, shift in (("jaw_width", 0.5), ("brow_ridge", 0.6), ("brow_thickness", 0.6), ("nose_width", 0.3),
                        ("chin_width", 0.4), ("eye_size", -0.4), ("lip_upper", -0.4), ("lip_lower", -0.4),
                        ("brow_arch", -0.4)):  # fmt: skip
        shape[name] += shift if male else -shift

    tone = float(rng.beta(1.1, 1.1))
    skin = (
        _SKIN_LIGHT + (_SKIN_MEDIUM - _SKIN_LIGHT) * tone * 2
        if tone < 0.5
        else _SKIN_MEDIUM + (_SKIN_DARK - _SKIN_MEDIUM) * (tone * 2 - 1)
    )
    skin = skin * (1 + rng.normal(0, 0.022, 3))
    odds = _HAIR_ODDS * np.where(np.arange(7) >= 3, 1.0 if tone < 0.45 else 0.15, 1.0)
    hair = _HAIR[rng.choice(7, p=odds / odds.sum())] * (1 + rng.normal(0, 0.05, 3))
    brow = hair * rng.uniform(0.5, 0.9)
    iris = _IRIS[
        rng.choice(
            5, p=[0.35, 0.25, 0.12, 0.18, 0.10] if tone < 0.45 else [0.7, 0.24, 0.03, 0.02, 0.01]
        )
    ]
    lips = skin * np.array([0.88, 0.54, 0.54]) if male else (
        skin * np.array([0.95, 0.55, 0.56]) * (1 - 0.5 * (m := rng.beta(1, 2))) + np.array([0.6, 0.1, 0.15]) * 0.5 * m
    )  # fmt: skip
    styles = (
        [0.13, 0.34, 0.18, 0.20, 0.01, 0.04, 0.10]
        if male
        else [0.005, 0.07, 0.14, 0.12, 0.24, 0.31, 0.115]
    )
    beard = str(rng.choice(BEARDS, p=[0.45, 0.2, 0.08, 0.09, 0.18])) if male else "none"
    glasses = str(rng.choice(["round", "square"])) if rng.random() < 0.16 else None
    moles = tuple(
        (
            float(rng.uniform(-0.65, 0.65)),
            float(rng.uniform(-1.0, 0.75)),
            float(rng.uniform(0.022, 0.045)),
        )
        for _ in range(int(rng.poisson(0.8)))
    )
    return Identity(
        gender="male" if male else "female",
        shape=shape,
        skin=_rgb(skin),
        hair=_rgb(hair),
        brow=_rgb(brow),
        iris=_rgb(iris * (1 + rng.normal(0, 0.1, 3))),
        lips=_rgb(lips),
        hair_style=str(rng.choice(HAIR_STYLES, p=styles)),
        hairline=float(rng.normal(0, 1)),
        parting=float(rng.uniform(-1, 1)),
        beard=beard,
        glasses=glasses,
        glasses_colour=_rgb(
            rng.choice(
                np.array(
                    [
                        [0.04, 0.04, 0.05],
                        [0.30, 0.15, 0.07],
                        [0.55, 0.08, 0.1],
                        [0.15, 0.2, 0.45],
                        [0.6, 0.58, 0.5],
                    ]
                )
            )
        ),  # fmt: skip
        moles=moles,
        freckles=float(rng.random() < 0.15) * float(rng.uniform(0.4, 1.0)) * float(tone < 0.4),
    )
