"""Colour order, judged on rendered faces."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_steps.demo_world.rendering.population import HELD_OUT, person, wild_nuisance
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.pixels import MIN_FACES, check_rgb, redness


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    photographs = [
        person(3, HELD_OUT, n).photograph(wild_nuisance(3, HELD_OUT, n, 0), 64, supersample=1)
        for n in range(24)
    ]
    return np.stack([align_to_template(photo.image, photo.landmarks) for photo in photographs])


def test_rgb_faces_pass_and_bgr_faces_are_named(faces: np.ndarray) -> None:
    check_rgb(faces)
    with pytest.raises(ValueError, match=r"24 of 24 coloured faces are bluer than red.*BGR"):
        check_rgb(faces[..., ::-1])


def test_every_draw_of_faces_is_judged_rightly(faces: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        drawn = faces[rng.choice(len(faces), MIN_FACES, replace=False)]
        check_rgb(drawn)
        with pytest.raises(ValueError, match="BGR"):
            check_rgb(drawn[..., ::-1])


def test_some_faces_in_blue_light_are_no_alarm(faces: np.ndarray) -> None:
    lit = faces.copy()
    lit[:14] = lit[:14, ..., ::-1]
    assert (redness(lit) < 0).mean() > 0.5
    check_rgb(lit)


def test_grey_and_few_faces_give_no_verdict(faces: np.ndarray) -> None:
    check_rgb(np.repeat(faces[..., :1], 3, axis=3))
    check_rgb(faces[: MIN_FACES - 1, ..., ::-1])
    check_rgb(faces[:0])
