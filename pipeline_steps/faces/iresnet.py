"""The improved residual network of face recognition (iResNet), and its weights out of ONNX.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline_steps.runtime.errors import StepError

EMBEDDING_DIM = 512
INPUT_SIZE = 112
N_STAGES = 4
EPSILON = 1e-5  # of every batch normalisation

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

    def forward(self, x: Tensor) -> Tensor:
        """RGB in [-1, 1], [n, 3, input_size, input_size] -> [n, embedding_dim], not normalised."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))

    def forward_with_quality(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the quality [n], higher is better.

        Raises:
            ValueError: the network was built without the quality head.
        """
        if self.qs is None:
            raise ValueError("this iResNet was built without a quality head (quality_head=True)")
        embedding = self.forward(x)
        return embedding, self.qs(embedding).squeeze(1)


# ONNX: InsightFace publishes many recognisers in this form only, in which they have no gradients.

_ALIASES = ("Identity", "Unsqueeze")  # of a stored tensor: the same numbers
_PASSED_OVER = ("Identity", "Dropout", "Cast")  # do nothing to a trained network's values


class _Unfit(Exception):
    """The graph is not an iResNet's."""


def state_dict_of_onnx(path: Path) -> dict[str, Tensor]:
    """Weights of an iResNet's ONNX graph by their names in :class:`IResNet`.

    Exporters fold most batch normalisations into the convolution before them and give tensors
    numbers for names, so weights are found by walking the graph from its input along the network's
    own structure. A folded normalisation becomes one that only adds the convolution's bias.
    Whatever is not that structure is refused.

    Args:
        path: ONNX file with its weights inside, input [n, 3, side, side].

    Returns:
        float32 tensors on the CPU; the numbers of blocks are the graph's.

    Raises:
        StepError: the file cannot be read, or is another network.
    """
    import onnx

    try:
        return _Walk(onnx.load(path, load_external_data=False).graph).state_dict()
    except _Unfit as error:
        raise StepError(f"weights file {path} is no iResNet in ONNX: {error}") from error
    except Exception as error:  # protobuf and onnx have their own exceptions for broken files
        raise StepError(f"weights file {path} cannot be read as ONNX: {error}") from error


class _Walk:
    """One walk through a graph, collecting tensors; each step takes and gives a tensor's name."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.tensors = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.consumers: dict[str, list[Any]] = {}
        self.left = 0  # nodes that no step of the walk has used
        for node in graph.node:
            if node.op_type == "Constant":
                self.tensors[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type in _ALIASES and node.input[0] in self.tensors:
                self.tensors[node.output[0]] = self.tensors[node.input[0]]
            else:
                self.left += node.op_type not in _PASSED_OVER
                for name in {name for name in node.input if name not in self.tensors}:
                    self.consumers.setdefault(name, []).append(node)
        self.start = next(item.name for item in graph.input if item.name not in self.tensors)
        self.end = graph.output[0].name
        self.state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        place = self._convolution(self.start, "conv1", "bn1", stride=1)
        place = self._prelu(place, "prelu")
        stage, block = 0, 0
        while self._next(place, "Conv") or self._next(place, "Add"):
            if self._next(place, "Conv"):  # only a stage's first block changes the shortcut
                stage, block = stage + 1, 0
            place = self._block(place, f"layer{stage}.{block}", first=block == 0)
            block += 1
        place = self._normalisation(place, "bn2", required=True)
        flatten = self._next(place, "Flatten") or self._need(place, "Reshape")
        self.left -= flatten.op_type == "Flatten"
        place = self._linear(str(flatten.output[0]))
        place = self._normalisation(place, "features", width=len(self.state["fc.bias"]))
        if self.left or self._past(place) != self.end:
            raise _Unfit(f"{self.left} operations are left over behind {place!r}")
        return self.state

    def _block(self, place: str, name: str, *, first: bool) -> str:
        shortcut = place
        if first:
            shortcut = self._convolution(
                place, f"{name}.downsample.0", f"{name}.downsample.1", stride=2
            )
        out = self._normalisation(place, f"{name}.bn1", required=True)
        out = self._convolution(out, f"{name}.conv1", f"{name}.bn2", stride=1)
        out = self._prelu(out, f"{name}.prelu")
        out = self._convolution(out, f"{name}.conv2", f"{name}.bn3", stride=2 if first else 1)
        node = self._need(out, "Add")
        if {self._past(shortcut), out} != set(node.input) and {shortcut, out} != set(node.input):
            raise _Unfit(f"{name} does not add its shortcut")
        return str(node.output[0])

    def _convolution(self, place: str, name: str, normalisation: str, *, stride: int) -> str:
        node = self._need(place, "Conv")
        weight = self._tensor(node, 1)
        found = {"strides": [1] * 2, "pads": [0] * 4}
        found |= {item.name: list(item.ints) for item in node.attribute if item.ints}
        wanted = {"strides": [stride] * 2, "pads": [weight.shape[-1] // 2] * 4}
        for key, value in wanted.items():
            if found[key] != value:
                raise _Unfit(f"{name} has {key} {found[key]}, expected {value}")
        self.state[f"{name}.weight"] = weight
        bias = self._tensor(node, 2) if len(node.input) > 2 else torch.zeros(len(weight))
        return self._normalisation(str(node.output[0]), normalisation, width=len(weight), add=bias)

    def _normalisation(
        self,
        place: str,
        name: str,
        *,
        width: int = 0,
        add: Tensor | None = None,
        required: bool = False,
    ) -> str:
        """A batch normalisation, or where it was folded away, one that adds ``add``."""
        node = self._next(place, "BatchNormalization")
        if required or (node is not None and len(self.consumers[self._past(place)]) == 1):
            node = self._need(place, "BatchNormalization")
            scale, shift, mean, variance = (self._tensor(node, index) for index in range(1, 5))
            mean = mean if add is None else mean - add
            variance = variance + (_attribute(node, "epsilon", "f", EPSILON) - EPSILON)
            place = str(node.output[0])
        else:
            scale, mean = torch.ones(width), torch.zeros(width)
            shift = mean if add is None else add
            variance = scale - EPSILON
        self.state |= {
            f"{name}.weight": scale,
            f"{name}.bias": shift,
            f"{name}.running_mean": mean,
            f"{name}.running_var": variance,
            f"{name}.num_batches_tracked": torch.tensor(0),
        }
        return place

    def _prelu(self, place: str, name: str) -> str:
        node = self._need(place, "PRelu")
        self.state[f"{name}.weight"] = self._tensor(node, 1).flatten()
        return str(node.output[0])

    def _linear(self, place: str) -> str:
        node = self._need(place, "Gemm")
        if any(_attribute(node, name, "f", 1.0) != 1.0 for name in ("alpha", "beta")):
            raise _Unfit("its linear layer has factors")
        weight = self._tensor(node, 1)
        weight = weight if _attribute(node, "transB", "i", 0) else weight.T.contiguous()
        self.state["fc.weight"] = weight
        self.state["fc.bias"] = (
            self._tensor(node, 2) if len(node.input) > 2 else torch.zeros(len(weight))
        )
        return str(node.output[0])

    def _past(self, place: str) -> str:
        """The tensor behind operations that do nothing."""
        while len(nodes := self.consumers.get(place, [])) == 1 and nodes[0].op_type in _PASSED_OVER:
            place = nodes[0].output[0]
        return place

    def _next(self, place: str, kind: str) -> Any:
        """The one operation of a kind that takes a tensor, or None."""
        nodes = [n for n in self.consumers.get(self._past(place), []) if n.op_type == kind]
        return nodes[0] if len(nodes) == 1 else None

    def _need(self, place: str, kind: str) -> Any:
        node = self._next(place, kind)
        if node is None:
            kinds = [n.op_type for n in self.consumers.get(self._past(place), [])]
            raise _Unfit(f"expected one {kind} behind {place!r}, found {kinds or 'nothing'}")
        self.left -= 1
        return node

    def _tensor(self, node: Any, index: int) -> Tensor:
        values = self.tensors.get(node.input[index])
        if values is None:
            raise _Unfit(f"{node.op_type} behind {node.input[0]!r} computes its weights")
        return torch.from_numpy(np.array(values, dtype=np.float32))


def _attribute(node: Any, name: str, kind: str, default: float) -> float:
    return next((getattr(item, kind) for item in node.attribute if item.name == name), default)
