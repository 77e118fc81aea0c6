"""6DRepNet: head pose from the picture of a face.

Source: Hempel et al., "6D rotation representation for unconstrained head pose estimation", ICIP
2022: a RepVGG-B1g2 (Ding et al., CVPR 2021) in its inference form, one convolution with bias for
each block, and a linear layer to the first two columns of a rotation matrix. Parameter names are
those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_BLOCKS = (4, 6, 16, 1)
WIDTHS = (64, 128, 256, 512, 2048)
INPUT_SIZE = 224
BORDER = 30
"""Black pixels about an aligned 112-pixel face: the network was trained on looser crops."""


class RepVggBlock(nn.Module):
    """A 3x3 convolution and a rectifier."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.rbr_reparam = nn.Conv2d(
            inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        return F.relu(self.rbr_reparam(x))


class SixDRepNet(nn.Module):
    """Image -> rotation of the head.

    Args:
        widths: channels of the stem and of the four stages.
        n_blocks: blocks of the four stages.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, n_blocks: Sequence[int] = N_BLOCKS) -> None:
        super().__init__()
        self.layer0 = RepVggBlock(3, widths[0], stride=2, groups=1)
        stages = []
        index = 1
        for inputs, outputs, count in zip(widths[:-1], widths[1:], n_blocks, strict=True):
            blocks = []
            for number in range(count):
                blocks.append(
                    RepVggBlock(
                        inputs if number == 0 else outputs,
                        outputs,
                        stride=2 if number == 0 else 1,
                        groups=2 if index % 2 == 0 else 1,  # every other block of the "g2" family
                    )
                )
                index += 1
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear_reg = nn.Linear(widths[-1], 6)

    def forward(self, x: Tensor) -> Tensor:
        """Rotations [n, 3, 3] of images [n, 3, 224, 224] with ImageNet's mean and deviation."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return rotation_of(self.linear_reg(x.mean(dim=(2, 3))))


def rotation_of(columns: Tensor) -> Tensor:
    """Rotation matrices [n, 3, 3] from two raw columns [n, 6], by Gram-Schmidt (Zhou et al. 2019).

    The first three numbers are the first column, the last three about the second.
    """
    first = F.normalize(columns[:, :3], eps=1e-8)
    third = F.normalize(torch.linalg.cross(first, columns[:, 3:]), eps=1e-8)
    return torch.stack([first, torch.linalg.cross(third, first), third], dim=2)


def pose_of(rotation: Tensor) -> Tensor:
    """Pitch, yaw and roll [n, 3] in degrees, with the signs of `pose`, from rotations [n, 3, 3].

    6DRepNet counts yaw the other way round: its drawn axis goes left in the image for yaw > 0.
    """
    pitch = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    yaw = torch.atan2(rotation[:, 2, 0], torch.hypot(rotation[:, 0, 0], rotation[:, 1, 0]))
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.rad2deg(torch.stack([pitch, yaw, roll], dim=1))
