"""An iResNet's weights out of an ONNX graph, so that a published ONNX recogniser is differentiable.

InsightFace publishes many recognisers as ONNX only. Exporters fold most batch normalisations into
the convolution before them and give tensors numbers for names, so weights are found by walking the
graph from its input along the network's own structure: stem, residual blocks, flattening, linear
embedding. A folded normalisation becomes one that only adds the convolution's bias. Whatever is
not that structure is refused; the result is then a state dict as `arcface_torch` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_steps.runtime.errors import StepError

EPSILON = 1e-5  # of every batch normalisation in IResNet
ALIASES = ("Identity", "Unsqueeze")  # of a stored tensor: the same numbers
PASSED_OVER = ("Identity", "Dropout", "Cast")  # do nothing to a trained network's values


class _Unfit(Exception):
    """The graph is not an iResNet's."""


def state_dict_of_onnx(path: Path) -> dict[str, Tensor]:
    """Weights of an iResNet's ONNX graph by their names in :class:`IResNet`.

    Args:
        path: ONNX file with its weights inside, input [n, 3, side, side].

    Returns:
        float32 tensors on the CPU; the numbers of blocks are the graph's.

    Raises:
        StepError: the file cannot be read, or is another network.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
        return _Walk(graph).state_dict()
    except _Unfit as error:
        raise StepError(f"weights file {path} is no iResNet in ONNX: {error}") from error
    except Exception as error:  # protobuf and onnx have their own exceptions for broken files
        raise StepError(f"weights file {path} cannot be read as ONNX: {error}") from error


class _Walk:
    """One walk through a graph, collecting tensors."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.tensors = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.consumers: dict[str, list[Any]] = {}
        self.left = 0  # nodes that no step of the walk has used
        for node in graph.node:
            if node.op_type == "Constant":
                self.tensors[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type in ALIASES and node.input[0] in self.tensors:
                self.tensors[node.output[0]] = self.tensors[node.input[0]]
            else:
                self.left += node.op_type not in PASSED_OVER
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
        place = self._linear(self._flatten(place))
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
        side = weight.shape[-1]
        found = _ints(node)
        wanted = {"strides": [stride] * 2, "pads": [side // 2] * 4}
        for key, value in wanted.items():
            if found.get(key, [1] * 2 if key == "strides" else [0] * 4) != value:
                raise _Unfit(f"{name} has {key} {found.get(key)}, expected {value}")
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
        unfolded = node is not None and len(self.consumers[self._past(place)]) == 1
        if required or unfolded:
            node = self._need(place, "BatchNormalization")
            scale, shift, mean, variance = (self._tensor(node, index) for index in range(1, 5))
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            mean = mean if add is None else mean - add
            variance, place = variance + (epsilon - EPSILON), str(node.output[0])
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

    def _flatten(self, place: str) -> str:
        node = self._next(place, "Flatten") or self._need(place, "Reshape")
        self.left -= node.op_type == "Flatten"
        return str(node.output[0])

    def _linear(self, place: str) -> str:
        node = self._need(place, "Gemm")
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        scales = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
        if any(scale != 1.0 for scale in scales):
            raise _Unfit("its linear layer has factors")
        weight = self._tensor(node, 1)
        self.state["fc.weight"] = weight if transposed else weight.T.contiguous()
        self.state["fc.bias"] = (
            self._tensor(node, 2) if len(node.input) > 2 else weight.new_zeros(weight.shape[0])
        )
        return str(node.output[0])

    def _past(self, place: str) -> str:
        """The tensor behind operations that do nothing."""
        while len(nodes := self.consumers.get(place, [])) == 1 and nodes[0].op_type in PASSED_OVER:
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


def _ints(node: Any) -> Mapping[str, list[int]]:
    return {a.name: list(a.ints) for a in node.attribute if a.ints}
