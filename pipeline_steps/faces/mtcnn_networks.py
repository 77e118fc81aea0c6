"""MTCNN's three networks with facenet-pytorch's weights.

Source: Zhang et al., IEEE SPL 2016; layers and weight files as in facenet-pytorch 2.6 (MIT). Only
its files are used: importing the package costs two seconds, for parts that are not needed here.
Inputs are RGB, (x - 127.5) / 128; each network returns the shift of the box's sides, the landmarks
where it has any, and the probabilities of no face and face.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline_steps.runtime.errors import StepError


def _flat(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, w * h * c]: the order in which the original, columns first, did it."""
    return x.permute(0, 3, 2, 1).flatten(1)


class ProposalNet(nn.Module):
    """Fully convolutional; a cell is 12 pixels wide and the next one 2 pixels further."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, h, w] -> shift [n, 4, rows, columns], probabilities [n, 2, rows, columns]."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), torch.softmax(self.conv4_1(x), dim=1)


class RefineNet(nn.Module):
    """Looks at candidates of 24 by 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, 24, 24] -> shift [n, 4], probabilities [n, 2]."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu4(self.dense4(_flat(self.prelu3(self.conv3(x)))))
        return self.dense5_2(x), torch.softmax(self.dense5_1(x), dim=1)


class OutputNet(nn.Module):
    """Looks at candidates of 48 by 48 pixels, and finds landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, 3, 48, 48] -> shift [n, 4], landmarks [n, 10], probabilities [n, 2]."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu5(self.dense5(_flat(self.prelu4(self.conv4(x)))))
        return self.dense6_2(x), self.dense6_3(x), torch.softmax(self.dense6_1(x), dim=1)


def load_networks() -> tuple[ProposalNet, RefineNet, OutputNet]:
    """The three networks with their weights, on the CPU.

    Raises:
        StepError: facenet-pytorch, which brings the weights, is not installed.
    """
    package = find_spec("facenet_pytorch")
    if package is None or package.origin is None:
        raise StepError(
            "the face detector's weights come with the package facenet-pytorch, which is missing: "
            "install the project's requirements"
        )
    folder = Path(package.origin).parent / "data"
    networks = ProposalNet(), RefineNet(), OutputNet()
    for network, name in zip(networks, ("pnet.pt", "rnet.pt", "onet.pt"), strict=True):
        network.load_state_dict(torch.load(folder / name, map_location="cpu", weights_only=True))
    return networks
