"""Rotation, camera and rays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline_steps.demo_world.rendering.geometry import (
    Camera,
    meet_ellipsoid,
    meet_sphere,
    rotation,
)

NOSE, CROWN = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])


def test_positive_angles_turn_right_raise_and_roll_clockwise() -> None:
    assert (rotation(30, 0, 0) @ NOSE)[0] == pytest.approx(0.5)
    assert (rotation(0, 30, 0) @ NOSE)[1] == pytest.approx(0.5)
    assert (rotation(0, 0, 30) @ CROWN)[0] == pytest.approx(0.5)


def test_rotation_composes_as_yaw_then_pitch_then_roll() -> None:
    for yaw, pitch, roll in np.random.default_rng(0).uniform(-60, 60, (20, 3)):
        expected = Rotation.from_euler("yxz", [yaw, -pitch, -roll], degrees=True)
        np.testing.assert_allclose(rotation(yaw, pitch, roll), expected.as_matrix(), atol=1e-12)


def test_a_pixels_ray_passes_through_what_projects_to_it() -> None:
    camera = Camera(size=16, width=3.0, distance=8.0, centre=(0.3, -0.2))
    rays = camera.rays().astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, rtol=1e-6)
    for row, column, t in ((0, 0, 7.0), (5, 11, 9.0), (15, 3, 6.5)):
        point = np.array([0, 0, 8.0]) + t * rays[row, column]
        np.testing.assert_allclose(camera.project(point[None])[0], [column, row], atol=1e-4)


def test_rays_meet_sphere_and_ellipsoid_where_geometry_says() -> None:
    origin = np.array([0.0, 0.0, 5.0])
    rays = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    hit, near, far = meet_sphere(origin, rays, 2.0)
    assert hit.tolist() == [True, False]
    assert (near[0], far[0]) == pytest.approx((3.0, 7.0))
    centre, axes = np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0])
    hit, t, normal = meet_ellipsoid(origin, rays, centre, axes, np.array([np.inf, np.inf]))
    assert hit.tolist() == [True, False]
    np.testing.assert_allclose(t, [1.0])
    np.testing.assert_allclose(normal, [NOSE])


def test_an_ellipsoid_behind_something_else_is_not_met() -> None:
    origin, rays = np.array([0.0, 0.0, 5.0]), np.array([[0.0, 0.0, -1.0]])
    nearer = np.array([0.9])
    hit, t, normal = meet_ellipsoid(origin, rays, np.zeros(3), np.ones(3), nearer)
    assert not hit.any()
    assert len(t) == len(normal) == 0
