"""A small classifier of visible attributes, whose penultimate activations describe an image.

In the embedded world it has Inception's role in the Fréchet distance and the kNN manifolds: a
network trained to tell the world's attributes apart, without looking at identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ATTRIBUTES_PREPROCESSING = "RGB, any size, (x / 255 - 0.5) / 0.5"


class AttributeNet(nn.Module):
    """Convolutions that halve the resolution, global average pooling, one linear head each.

    Args:
        classes: number of classes of each attribute.
        widths: channels of each stage; the last is the number of features.
    """

    def __init__(
        self, classes: Mapping[str, int], widths: Sequence[int] = (16, 32, 64, 64)
    ) -> None:
        super().__init__()
        stages = []
        inputs = 3
        for width in widths:
            stages.append(
                nn.Sequential(
                    nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
            )
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.heads = nn.ModuleDict({name: nn.Linear(inputs, n) for name, n in classes.items()})

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations [n, widths[-1]] of images [n, 3, h, w], RGB in [-1, 1]."""
        return self.stages(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits [n, classes] of each attribute for images [n, 3, h, w], RGB in [-1, 1]."""
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> AttributeNet:
        """The network of a state dict, whose shapes say how it is built; in evaluation mode.

        Raises:
            ValueError: the tensors are not those of such a network.
        """
        widths: list[int] = []
        while (weight := state.get(f"stages.{len(widths)}.0.weight")) is not None:
            widths.append(weight.shape[0])
        heads = {
            name.split(".")[1]: weight.shape[0]
            for name, weight in state.items()
            if name.startswith("heads.") and name.endswith(".weight")
        }
        if not widths:
            raise ValueError("no tensors of an attribute network (stages.0.0.weight, …)")
        with torch.random.fork_rng(devices=[]):
            network = cls(heads, widths)
        try:
            network.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return network.eval()
