"""Photographs of rendered people, held against what the renderer says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline_steps.demo_world.rendering.face import expression_of
from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, Nuisance
from pipeline_steps.demo_world.rendering.population import HELD_OUT, person, wild_nuisance
from pipeline_steps.demo_world.rendering.renderer import Photograph
from pipeline_steps.faces.detection import Detector

CALM = Nuisance(noise=0.0)
WHO = person(0, HELD_OUT, 3)
LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH = range(5)


def landmarks(**how: float | str) -> np.ndarray:
    return WHO.photograph(replace(CALM, **how), 64, 1).landmarks  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_pixels() -> None:
    nuisance = wild_nuisance(1, HELD_OUT, 0, 0)
    first, second = (person(1, HELD_OUT, 0).photograph(nuisance, 64, 1) for _ in range(2))
    assert first.image.dtype == np.uint8
    assert first.image.shape == (64, 64, 3)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.landmarks, second.landmarks)


def test_yaw_turns_the_nose_to_the_images_right() -> None:
    front, turned = landmarks(), landmarks(yaw=25.0)
    middle = front[[LEFT_EYE, RIGHT_EYE], 0].mean()
    assert front[NOSE, 0] == pytest.approx(middle, abs=0.6)
    assert turned[NOSE, 0] - turned[[LEFT_EYE, RIGHT_EYE], 0].mean() > 1.5


def test_pitch_raises_the_nose_towards_the_eyes() -> None:
    def drop(points: np.ndarray) -> float:
        return float(points[NOSE, 1] - points[[LEFT_EYE, RIGHT_EYE], 1].mean())

    assert drop(landmarks(pitch=12.0)) < drop(landmarks()) - 0.5
    assert drop(landmarks(pitch=-12.0)) > drop(landmarks()) + 0.5


def test_roll_turns_the_line_of_the_eyes_clockwise_by_its_angle() -> None:
    for roll in (-15.0, 10.0):
        dx, dy = np.subtract(*landmarks(roll=roll)[[RIGHT_EYE, LEFT_EYE]])
        level = np.subtract(*landmarks()[[RIGHT_EYE, LEFT_EYE]])
        assert np.rad2deg(np.arctan2(dy, dx)) == pytest.approx(
            roll + np.rad2deg(np.arctan2(level[1], level[0])), abs=1.0
        )


def test_eyes_are_as_far_apart_as_scale_says_and_closer_by_the_cosine_of_yaw() -> None:
    distances = []
    for number in range(12):
        photo = person(0, HELD_OUT, number).photograph(CALM, 64, 1)
        distances.append(photo.landmarks[RIGHT_EYE, 0] - photo.landmarks[LEFT_EYE, 0])
    assert np.mean(distances) / 64 == pytest.approx(CALM.scale, rel=0.08)
    far = replace(CALM, camera_distance=100.0)
    frontal, turned = (
        WHO.photograph(replace(far, yaw=yaw), 64, 1).landmarks for yaw in (0.0, 30.0)
    )
    apart = [float(np.linalg.norm(m[RIGHT_EYE] - m[LEFT_EYE])) for m in (frontal, turned)]
    assert apart[1] == pytest.approx(apart[0] * np.cos(np.deg2rad(30)), rel=0.03)


def test_expressions_move_the_mouth_as_their_names_say() -> None:
    marks = {name: landmarks(expression=name) for name in EXPRESSIONS}
    corners = {name: m[[LEFT_MOUTH, RIGHT_MOUTH], 1].mean() for name, m in marks.items()}
    width = {name: m[RIGHT_MOUTH, 0] - m[LEFT_MOUTH, 0] for name, m in marks.items()}
    assert corners["sad"] > corners["neutral"] + 0.3
    assert corners["shocked"] > corners["neutral"] + 0.3
    assert width["happy"] > 1.1 * width["neutral"] > 1.1 * width["sad"]
    np.testing.assert_allclose(marks["angry"][:3], marks["neutral"][:3], atol=0.1)


def test_an_angry_face_differs_at_brows_and_mouth_and_not_above() -> None:
    who = person(0, HELD_OUT, 6)
    calm, angry = (who.photograph(replace(CALM, expression=e), 96, 1) for e in ("neutral", "angry"))
    change = np.abs(calm.image.astype(int) - angry.image).sum((1, 2))
    eyes, mouth = calm.landmarks[:2, 1].mean(), calm.landmarks[3:, 1].mean()
    assert change[int(eyes) - 14 : int(eyes) + 5].sum() > 0.25 * change.sum()
    assert change[int(mouth) - 5 : int(mouth) + 8].sum() > 0.05 * change.sum()
    assert change[: int(eyes) - 20].sum() < 0.02 * change.sum()


def test_an_expressions_intensity_runs_from_rest_to_full() -> None:
    assert expression_of("happy", 0.0) == expression_of("neutral", 1.0)
    half, full = expression_of("happy", 0.5), expression_of("happy", 1.0)
    assert half.corners == pytest.approx(0.5 * full.corners)
    with pytest.raises(KeyError):
        expression_of("bored", 1.0)


def test_light_from_the_right_brightens_the_right_half_of_the_face() -> None:
    def halves(azimuth: float) -> tuple[float, float]:
        photo = WHO.photograph(replace(CALM, light_azimuth=azimuth, light_elevation=10.0), 64, 1)
        x, y = photo.landmarks[NOSE].round().astype(int)
        rows = photo.image[y - 8 : y + 4].astype(float)
        return rows[:, x - 10 : x - 2].mean(), rows[:, x + 3 : x + 11].mean()

    left, right = halves(60.0)
    assert right > 1.15 * left
    left, right = halves(-60.0)
    assert left > 1.15 * right


@pytest.fixture(scope="module")
def wild() -> list[Photograph]:
    return [
        person(5, HELD_OUT, k).photograph(wild_nuisance(5, HELD_OUT, k, 0), 160, 1)
        for k in range(40)
    ]


def test_the_detector_finds_rendered_faces_and_their_landmarks(wild: list[Photograph]) -> None:
    found = Detector().detect([photo.image for photo in wild])
    assert max(abs(photo.yaw) for photo in wild) > 30
    assert sum(face is not None for face in found) >= 0.95 * len(wild)
    errors = []
    for photo, face in zip(wild, found, strict=True):
        if face is None or abs(photo.yaw) > 30:
            continue
        projected = np.linalg.norm(photo.landmarks[RIGHT_EYE] - photo.landmarks[LEFT_EYE])
        eyes = projected / np.cos(np.deg2rad(photo.yaw))
        errors.append(np.linalg.norm(face.landmarks - photo.landmarks, axis=1).mean() / eyes)
    assert len(errors) > 20
    assert np.mean(errors) <= 0.07
