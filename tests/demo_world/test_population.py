"""Who the rendered people are, and how they are photographed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline_steps.demo_world.rendering.parameters import sample_identity
from pipeline_steps.demo_world.rendering.population import (
    CONSENTED,
    HELD_OUT,
    PRETRAINING,
    WILD,
    laboratory_session,
    person,
    wild_nuisance,
)
from pipeline_steps.faces.alignment import align_to_template


def test_no_two_members_of_any_populations_are_the_same_person() -> None:
    people = [
        person(seed, population, number)
        for seed in (0, 1)
        for population in (PRETRAINING, CONSENTED, WILD, HELD_OUT, "benchmark plain")
        for number in range(20)
    ]
    assert len({repr(who.identity) for who in people}) == len(people)
    assert len({who.texture_seed for who in people}) == len(people)
    assert person(0, WILD, 4) == person(0, WILD, 4)


def test_shapes_are_spread_and_genders_even() -> None:
    people = [sample_identity(0, "spread", k) for k in range(600)]
    assert np.mean([who.gender == "male" for who in people]) == pytest.approx(0.5, abs=0.07)
    jaws = {
        gender: np.array([who.shape["jaw_width"] for who in people if who.gender == gender])
        for gender in ("male", "female")
    }
    assert jaws["male"].mean() - jaws["female"].mean() == pytest.approx(1.0, abs=0.25)
    assert all(jaw.std() == pytest.approx(1, abs=0.15) for jaw in jaws.values())
    assert all(who.beard == "none" for who in people if who.gender == "female")
    assert len({who.hair_style for who in people}) == 7


def test_a_session_has_three_cameras_and_nine_positions_whose_yaw_rises() -> None:
    session = list(laboratory_session(0, 5))
    assert [(camera, position) for camera, position, _ in session] == [
        (camera, position) for camera in (1, 2, 3) for position in range(9)
    ]
    assert len({how.shirt for _, _, how in session}) == 1
    for camera in (1, 2, 3):
        yaws = [how.yaw for c, _, how in session if c == camera]
        assert yaws == sorted(yaws)
        assert yaws[4] == pytest.approx(0, abs=5)
        assert yaws[0] == pytest.approx(-53, abs=6)
    pitch = [np.mean([how.pitch for c, _, how in session if c == camera]) for camera in (1, 2, 3)]
    assert pitch[0] < pitch[1] < pitch[2]


def test_wild_circumstances_stay_in_range_and_can_be_fixed() -> None:
    drawn = [wild_nuisance(0, WILD, k, 0) for k in range(300)]
    assert max(abs(how.yaw) for how in drawn) <= 45
    assert len({how.place for how in drawn}) == 11
    assert len({how.expression for how in drawn}) == 5
    assert wild_nuisance(0, WILD, 1, 0) != wild_nuisance(0, WILD, 1, 1)
    assert wild_nuisance(0, WILD, 1, 0, place="bus", expression="sad").place == "bus"


def test_two_cameras_photographs_of_a_person_resemble_each_other_most() -> None:
    faces = []
    for number in range(1, 9):
        session = {(c, p): how for c, p, how in laboratory_session(0, number)}
        for camera in (1, 2):
            photo = person(0, CONSENTED, number).photograph(session[camera, 4], 192, 1)
            face = align_to_template(photo.image, photo.landmarks)
            faces.append(face.reshape(14, 8, 14, 8, 3).mean((1, 3)).ravel())
    apart = cdist(faces, faces)
    np.fill_diagonal(apart, np.inf)
    partner = np.arange(16) ^ 1
    assert (apart.argmin(1) == partner).mean() >= 0.9
