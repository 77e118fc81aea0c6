"""Recognisers that judge and guide no training: dlib's ResNet and facenet-pytorch's Inception.

Source: King, "High quality face recognition with deep metric learning", 2017, and dlib's example
dnn_face_recognition_ex.cpp; Schroff et al., "FaceNet", CVPR 2015, as facenet-pytorch has it.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE, similarity_transform
from pipeline_steps.runtime.errors import StepError

DLIB_SIDE, DLIB_PADDING = 150, 0.25
DLIB_MEAN, DLIB_SCALE = (122.782, 117.001, 104.298), 256.0  # levels of red, green, blue
# Eyes, tip of the nose and corners of the mouth in dlib's mean face, whose sides are 1.
DLIB_MEAN_FACE: NDArray[np.float64] = np.array(
    [
        [0.2255, 0.2160],
        [0.7548, 0.2160],
        [0.4901, 0.5156],
        [0.2541, 0.7802],
        [0.7261, 0.7802],
    ]
)
DLIB_TEMPLATE = (DLIB_MEAN_FACE + DLIB_PADDING) / (1 + 2 * DLIB_PADDING) * DLIB_SIDE
# A tensor in dlib's files: version 2, four sizes and float32 numbers; an integer is a byte that
# counts the bytes that follow. Networks hold tensors [n, 1, 1, 1], and one [256, 128, 1, 1].
DLIB_TENSOR = re.compile(b"\1\2(?:\2\0\1(\1\x80)|(\1.|\2..|\3...)\1\1)\1\1\1\1", re.DOTALL)
SMALLEST = 64  # numbers in a tensor of parameters


def dlib_chips(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Aligned faces uint8 [n, 112, 112, 3] as dlib cuts them out, [n, 150, 150, 3], bilinearly.

    dlib's cut reaches further down than ArcFace's: what is below the chin stays black.
    """
    matrix = similarity_transform(ARCFACE_TEMPLATE, DLIB_TEMPLATE)
    size = (DLIB_SIDE, DLIB_SIDE)
    chips = [cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR) for image in images]
    return np.asarray(chips, dtype=np.uint8).reshape(-1, *size, 3)


class _Convolution(nn.Conv2d):
    """A convolution, then a scale and a shift of each channel."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        padding = side // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, side, stride, padding)
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale[:, None, None] + self.shift[:, None, None]


class _Residual(nn.Module):
    """Two convolutions beside a mean over squares; the smaller of the two gets zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = _Convolution(inputs, outputs, 3, stride)
        self.second = _Convolution(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        past = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        found = self.second(F.relu(self.first(x)))
        channels, height, width = map(max, zip(found.shape[1:], past.shape[1:], strict=True))
        found, past = (
            F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2], 0, channels - y.shape[1]))
            for y in (found, past)
        )
        return F.relu(found + past)


class DlibResNet(nn.Module):
    """dlib's network of 29 convolutions, its parameters in the order of dlib's file."""

    def __init__(self) -> None:
        super().__init__()
        runs = ((32, (1, 1, 1)), (64, (2, 1, 1, 1)), (128, (2, 1, 1)), (256, (2, 1, 1, 2)))
        levels = [(width, stride) for width, strides in runs for stride in strides]
        inputs = (32, *(width for width, _ in levels))
        self.trunk = nn.Sequential(
            _Convolution(3, 32, 7, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            *(_Residual(i, *level) for i, level in zip(inputs, levels, strict=False)),
        )
        self.projection = nn.Parameter(torch.zeros(256, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Descriptors [n, 128], not normalised, of chips [n, 3, 150, 150], RGB in [0, 255]."""
        mean = torch.tensor(DLIB_MEAN, device=x.device)[:, None, None]
        return self.trunk((x - mean) / DLIB_SCALE).mean(dim=(2, 3)) @ self.projection


def read_dlib_resnet(path: Path) -> DlibResNet:
    """The network with the parameters of dlib_face_recognition_resnet_model_v1.dat.

    Raises:
        StepError: the file holds other tensors.
    """
    content, tensors, position = path.read_bytes(), [], 0
    while found := DLIB_TENSOR.search(content, position):
        size = 256 * 128 if found[1] else int.from_bytes(found[2][1:], "little")
        start = found.end()
        if size >= SMALLEST and start + 4 * size <= len(content):
            tensors.append(np.frombuffer(content, "<f4", size, start))
            position = start + 4 * size
        else:
            position = found.start() + 1
    network = DlibResNet()
    parameters = [*network.trunk.parameters(), network.projection]
    expected = sum(parameter.numel() for parameter in parameters)
    numbers = np.concatenate([np.zeros(0, np.float32), *tensors])
    if len(numbers) != expected:
        raise StepError(
            f"{path} holds {len(numbers)} parameters, dlib's face recogniser has {expected}: fetch "
            "it again (docs/weights.md)"
        )
    vector_to_parameters(torch.from_numpy(numbers), parameters)
    return network


def inception_resnet(state: dict[str, Tensor]) -> nn.Module:
    """facenet-pytorch's network for a state dict, from which its classes are taken away."""
    from facenet_pytorch import InceptionResnetV1

    for name in [name for name in state if name.startswith("logits.")]:
        del state[name]
    network: nn.Module = InceptionResnetV1()
    return network
