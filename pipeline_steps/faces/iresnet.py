"""The improved residual network of face recognition (iResNet), with an optional quality head.

Source: Duta et al., "Improved Residual Networks for Image and Video Recognition", ICPR 2020, in the
form that ArcFace (Deng et al., CVPR 2019) made the standard of face recognition: a stride-1 stem,
four stages that each halve the resolution, batch normalisation before the first and after the last
convolution of every block, and a linear embedding of the flattened last feature map.

Parameter and buffer names are those of InsightFace's `arcface_torch`, so that its `backbone.pth`
files load unchanged. The quality head is the one of CR-FIQA (Boutros et al., CVPR 2023) as its
published weights have it: one linear regression (`qs`) from the embedding before normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EMBEDDING_DIM = 512
INPUT_SIZE = 112
N_STAGES = 4

# Residual blocks of the four stages, by the names that InsightFace uses.
NAMED_LAYERS: Mapping[str, tuple[int, ...]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False
    )


class IResidualBlock(nn.Module):
    """bn - conv - bn - prelu - conv (which carries the stride) - bn, plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, outputs, kernel=3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = _convolution(outputs, outputs, kernel=3, stride=stride)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _convolution(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + shortcut


class IResNet(nn.Module):
    """iResNet: aligned face -> embedding.

    Args:
        layers: blocks in each of the four stages.
        widths: channels of the stem and of the four stages.
        embedding_dim: length of the embedding.
        dropout: probability with which flattened features are dropped in training.
        input_size: height and width of the images in pixels.
        quality_head: also regress a face-image quality (`qs`, CR-FIQA).

    Raises:
        ValueError: layers or widths of the wrong length.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 13, 30, 3),
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        embedding_dim: int = EMBEDDING_DIM,
        dropout: float = 0.0,
        input_size: int = INPUT_SIZE,
        quality_head: bool = False,
    ) -> None:
        super().__init__()
        if len(layers) != N_STAGES or len(widths) != N_STAGES + 1:
            raise ValueError(
                f"iResNet has {N_STAGES} stages: expected {N_STAGES} layers and {N_STAGES + 1} "
                f"widths (stem first), got {tuple(layers)} and {tuple(widths)}"
            )
        self.input_size = input_size
        self.embedding_dim = embedding_dim
        self.conv1 = _convolution(3, widths[0], kernel=3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        self.layer1 = self._stage(widths[0], widths[1], layers[0])
        self.layer2 = self._stage(widths[1], widths[2], layers[1])
        self.layer3 = self._stage(widths[2], widths[3], layers[2])
        self.layer4 = self._stage(widths[3], widths[4], layers[3])
        self.bn2 = nn.BatchNorm2d(widths[4])
        self.dropout = nn.Dropout(p=dropout)
        last_size = -(-input_size // 2**N_STAGES)  # each stage rounds a half up
        self.fc = nn.Linear(widths[4] * last_size**2, embedding_dim)
        # Its scale stays 1: a free scale would undo the normalisation that the margin losses need.
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)
        self.qs: nn.Linear | None = nn.Linear(embedding_dim, 1) if quality_head else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = IResidualBlock(inputs, outputs, stride=2)
        return nn.Sequential(
            first, *(IResidualBlock(outputs, outputs, stride=1) for _ in range(blocks - 1))
        )

    def _flat_features(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.dropout(torch.flatten(self.bn2(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Embed faces.

        Args:
            x: [n, 3, input_size, input_size], RGB in [-1, 1].

        Returns:
            [n, embedding_dim], not normalised.
        """
        return self.features(self.fc(self._flat_features(x)))

    def forward_with_quality(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed faces and regress their quality in one pass.

        Args:
            x: [n, 3, input_size, input_size], RGB in [-1, 1].

        Returns:
            embeddings [n, embedding_dim], not normalised; quality [n], higher is better.

        Raises:
            ValueError: the network was built without the quality head.
        """
        if self.qs is None:
            raise ValueError("this iResNet was built without a quality head (quality_head=True)")
        embedding = self.forward(x)
        return embedding, self.qs(embedding).squeeze(1)
