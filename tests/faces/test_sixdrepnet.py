"""6DRepNet: size and layout of the published network, its rotations and its signs."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from pipeline_steps.faces.pose import SixDRepNet, pose_of, rotation_from_pose, rotation_of


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
