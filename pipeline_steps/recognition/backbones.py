"""Recognition backbones by name, and their files.

A model file is a safetensors file of the network's state with the keys of InsightFace's iResNet;
its metadata says how to build the network again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError

STANDARD_WIDTHS = (64, 64, 128, 256, 512)


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a backbone.

    Attributes:
        layers: blocks of the four stages.
        widths: channels of the stem and the four stages.
        embedding_dim: length of the embedding.
        input_size: height and width of the input in pixels.
        dropout: probability of dropping a feature in training.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    embedding_dim: int = 512
    input_size: int = 112
    dropout: float = 0.0

    def build(self) -> IResNet:
        """The network with fresh weights, drawn from torch's global generator."""
        return IResNet(**asdict(self))


def architecture(
    name: str,
    *,
    layers: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    embedding_dim: int = 512,
    input_size: int = 112,
    dropout: float = 0.0,
) -> Architecture:
    """A named backbone.

    Args:
        name: iresnet18, iresnet34, iresnet50, iresnet100, or custom with layers and widths.

    Raises:
        ValueError: unknown name, or custom without its sizes.
    """
    if name == "custom":
        if layers is None or widths is None:
            raise ValueError("a custom backbone needs layers and widths")
        sizes = tuple(layers), tuple(widths)
    elif name in NAMED_LAYERS:
        sizes = NAMED_LAYERS[name], STANDARD_WIDTHS
    else:
        raise ValueError(
            f"unknown backbone {name!r}: choose custom or one of {sorted(NAMED_LAYERS)}"
        )
    return Architecture(*sizes, embedding_dim, input_size, dropout)


def save_backbone(
    path: Path, network: nn.Module, built_as: Architecture, metadata: Mapping[str, str]
) -> None:
    """Write a model file atomically; `metadata` is kept beside the architecture."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    described = {"architecture": json.dumps(asdict(built_as), sort_keys=True), **metadata}
    save_tensors(path, state, described)


def load_backbone(path: Path) -> tuple[IResNet, Architecture, dict[str, str]]:
    """Read a model file.

    Returns:
        the network in evaluation mode on the CPU, its architecture, the file's metadata.

    Raises:
        StepError: missing or broken file, or one that save_backbone did not write.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StepError(
            f"cannot read the model {path} ({error}); run the recognise step again"
        ) from error
    try:
        built_as = _architecture_from(json.loads(metadata["architecture"]))
        network = built_as.build()
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StepError(
            f"{path} is no model of the recognise step ({first_line}); run that step again"
        ) from error
    return network.eval(), built_as, metadata


def _architecture_from(fields: dict[str, Any]) -> Architecture:
    sizes = {key: tuple(fields[key]) for key in ("layers", "widths")}  # JSON has lists only
    return Architecture(**{**fields, **sizes})


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def to_device(network: nn.Module, device: str) -> nn.Module:
    """Move a network; convolutions run faster with the channels last in memory."""
    moved: nn.Module = network.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
