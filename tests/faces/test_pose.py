"""Head pose: signs and magnitudes on projected landmarks; 6DRepNet's layout and signs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline_steps.faces import alignment, pose
from pipeline_steps.faces.pose import SixDRepNet, pose_of, rotation_from_pose, rotation_of


def project(points, pitch, yaw, roll, *, size=112, distance=900.0):
    """Landmarks [5, 2] of a head turned by scipy's rotations and seen by a pinhole camera."""
    turned = Rotation.from_euler("xyz", [-pitch, -yaw, roll], degrees=True).apply(points)
    turned += np.array([0.0, -15.0, distance])
    return turned[:, :2] / turned[:, 2:] * 4.0 * size + (size - 1) / 2


# Landmarks of a photograph of 512 x 512 pixels, scikit-image's astronaut.
ASTRONAUT = np.array(
    [[205.0, 101.7], [246.8, 103.7], [224.7, 129.0], [201.7, 139.2], [245.3, 141.9]]
)

ANGLES = [(0, 0, 0), (15, 0, 0), (-15, 0, 0), (0, 30, 0), (0, -45, 0), (0, 0, 20), (10, -25, -12)]


@pytest.mark.parametrize("angles", ANGLES)
def test_pose_of_the_average_head_is_recovered(angles):
    found = pose.head_pose(project(pose.HEAD_MODEL, *angles)[None], 112)
    np.testing.assert_allclose(found, [angles], atol=0.05)


@pytest.mark.parametrize("angles", ANGLES)
def test_pose_of_another_head_is_close(angles):
    other = pose.HEAD_MODEL * [1.05, 0.97, 1.1]
    found = pose.head_pose(project(other, *angles)[None], 112)
    np.testing.assert_allclose(found, [angles], atol=6.0)


@pytest.mark.parametrize("size", [64, 512, (480, 640)])
def test_image_size_does_not_change_the_pose(size):
    longer = size if isinstance(size, int) else max(size)
    height, width = (size, size) if isinstance(size, int) else size
    points = project(pose.HEAD_MODEL, 5, 20, 0, size=longer)
    points += [(width - longer) / 2, (height - longer) / 2]
    np.testing.assert_allclose(pose.head_pose(points[None], size), [[5, 20, 0]], atol=0.05)


def test_signs_follow_the_image():
    face = alignment.ARCFACE_TEMPLATE
    right, up = face.copy(), face.copy()
    right[2, 0] += 8.0
    up[2, 1] -= 5.0
    clockwise = project(pose.HEAD_MODEL, 0, 0, 10)
    assert pose.head_pose(right[None], 112)[0, 1] > 5.0
    assert pose.head_pose(up[None], 112)[0, 0] > 3.0
    assert clockwise[1, 1] > clockwise[0, 1]  # the right eye in the image sinks
    assert pose.head_pose(clockwise[None], 112)[0, 2] > 5.0


def test_the_template_is_a_frontal_face():
    found = pose.head_pose(alignment.ARCFACE_TEMPLATE[None], 112)
    np.testing.assert_allclose(found, [[0, 0, 0]], atol=0.7)


@pytest.mark.parametrize("angles", ANGLES)
def test_a_smile_is_not_taken_for_a_bowed_head(angles):
    smiling = pose.HEAD_MODEL.copy()
    smiling[3:, 1] -= 9.0  # millimetres up
    smiling[3:, 0] *= 1.25
    found = pose.head_pose(project(smiling, *angles)[None], 112)
    np.testing.assert_allclose(found, [angles], atol=6.0)
    found = pose.head_pose(ASTRONAUT[None], 512)  # a broad smile, the face to the camera
    assert np.abs(found).max() < 15.0


def test_rotation_and_angles_are_inverse():
    for angles in ANGLES:
        rotation = pose.rotation_from_pose(*angles)
        np.testing.assert_allclose(pose.pose_from_rotation(rotation), angles, atol=1e-9)


def test_missing_landmarks_give_no_pose():
    landmarks = np.stack([np.full((5, 2), np.nan), alignment.ARCFACE_TEMPLATE])
    found = pose.head_pose(landmarks, 112)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_impossible_landmarks_give_some_pose_and_nothing_gives_nothing():
    rng = np.random.default_rng(0)
    assert np.isfinite(pose.head_pose(rng.uniform(0, 112, (200, 5, 2)), 112)).all()
    assert pose.head_pose(np.zeros((0, 5, 2)), 112).shape == (0, 3)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[n, 5, 2\]"):
        pose.head_pose(np.zeros((5, 2)), 112)


def test_a_deeply_bowed_head_is_followed_to_the_minimum_alone_or_among_others() -> None:
    # The minimum by scipy's least_squares, of the residuals written out once more; a dozen steps
    # stop 0.06 degrees short of it.
    bowed = [[39.48, 50.37], [72.26, 50.38], [56.18, 78.77], [40.79, 90.17], [71.42, 89.81]]
    alone = pose.head_pose(np.array([bowed]), 112)
    np.testing.assert_allclose(alone[0], [-30.039606, 0.228390, -0.406565], atol=1e-4)
    among = pose.head_pose(np.array([alignment.ARCFACE_TEMPLATE, bowed]), 112)
    np.testing.assert_array_equal(among[1], alone[0])


def test_backbone_has_the_published_size_and_layout():
    with torch.device("meta"):
        network = SixDRepNet()
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    backbone = sum(np.prod(shape) for name, shape in state.items() if "linear" not in name)
    # RepVGG-B1g2 has 41.36 million parameters (its paper), 2048 x 1000 + 1000 in its classifier.
    assert round((backbone + 2048 * 1000 + 1000) / 1e6, 2) == 41.36
    assert state["layer0.rbr_reparam.weight"] == (64, 3, 3, 3)
    assert state["layer1.0.rbr_reparam.weight"] == (128, 64, 3, 3)
    assert state["layer1.1.rbr_reparam.weight"] == (128, 64, 3, 3)  # two groups
    assert state["layer4.0.rbr_reparam.weight"] == (2048, 512, 3, 3)
    assert state["linear_reg.weight"] == (6, 2048)
    assert len(state) == 2 * (1 + 4 + 6 + 16 + 1) + 2


def test_six_numbers_give_a_rotation():
    rng = np.random.default_rng(0)
    rotations = Rotation.random(20, random_state=1).as_matrix()
    raw = rotations[:, :, :2].transpose(0, 2, 1).reshape(20, 6)
    raw[:, 3:] += 0.5 * raw[:, :3]  # not orthogonal any more
    raw *= rng.uniform(0.5, 3.0, (20, 1))
    np.testing.assert_allclose(rotation_of(torch.from_numpy(raw)), rotations, atol=1e-9)


def test_angles_are_those_of_the_published_formulas_with_yaw_turned_round():
    angles = np.array([[10.0, -35.0, 5.0], [-20.0, 60.0, -15.0], [0.0, 0.0, 0.0]])
    published = Rotation.from_euler("xyz", angles * [1, -1, 1], degrees=True).as_matrix()
    np.testing.assert_allclose(pose_of(torch.from_numpy(published)), angles, atol=1e-9)


def test_signs_agree_with_the_pose_from_landmarks():
    """The axis that 6DRepNet's own demonstration draws points where our nose points."""
    pitch, yaw, roll = 12.0, 25.0, -8.0
    nose = rotation_from_pose(pitch, yaw, roll) @ [0.0, 0.0, -1.0]
    published = Rotation.from_euler("xyz", [pitch, -yaw, roll], degrees=True).as_matrix()
    ours = pose_of(torch.from_numpy(published)[None])[0]
    np.testing.assert_allclose(ours, [pitch, yaw, roll], atol=1e-9)
    its_yaw = np.radians(-yaw)
    drawn = [np.sin(-its_yaw), -np.cos(-its_yaw) * np.sin(np.radians(pitch))]  # draw_axis, blue
    assert np.sign(drawn).tolist() == np.sign(nose[:2]).tolist() == [1.0, -1.0]
