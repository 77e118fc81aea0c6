"""Where a face's features sit, and what an expression does to them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeline_steps.demo_world.rendering.identity import Identity


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
    full, rest = _EXPRESSIONS[name], Expression()
    return Expression(
        **{
            field.name: getattr(rest, field.name)
            + intensity * (getattr(full, field.name) - getattr(rest, field.name))
            for field in fields(Expression)
        }
    )


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
