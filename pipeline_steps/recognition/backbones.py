"""Recognition backbones: how they are built, their files, and their embeddings of images.

A model file is a safetensors file of the network's state with the keys of InsightFace's iResNet;
its metadata says how to build the network again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.faces import recogniser
from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.io.weights import fill
from pipeline_steps.recognition.dataset import NothingToTrain
from pipeline_steps.recognition.protocol import (
    N_FOLDS,
    Verification,
    pair_distances,
    unit_rows,
    verify_pairs,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.recognition import RecogniseSettings

STANDARD_WIDTHS = (64, 64, 128, 256, 512)
# Images per pass: on CPUs those whose feature maps stay in the cache, on GPUs those that fill it.
BATCH_SIZES = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a backbone; the fields are those of `IResNet`."""

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    embedding_dim: int = 512
    input_size: int = 112
    dropout: float = 0.0

    @staticmethod
    def of(settings: RecogniseSettings) -> Architecture:
        """What the settings describe, by its name or by its own sizes."""
        return Architecture(
            settings.layers or NAMED_LAYERS[settings.backbone],
            settings.widths or STANDARD_WIDTHS,
            settings.embedding_dim,
            settings.input_size,
            settings.dropout,
        )

    def build(self) -> IResNet:
        """The network with fresh weights, drawn from torch's global generator."""
        return IResNet(**asdict(self))


UNTRAINED = "untrained"  # in the metadata of an empty model file: why nothing was trained


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
        NothingToTrain: the step had nothing to train it on.
        StepError: missing or broken file, or one that save_backbone did not write.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            if UNTRAINED in metadata:
                raise NothingToTrain(metadata[UNTRAINED])
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StepError(
            f"cannot read the model {path} ({error}); run the recognise step again"
        ) from error
    try:
        fields = json.loads(metadata["architecture"])
        sizes = {key: tuple(fields[key]) for key in ("layers", "widths")}  # JSON has lists only
        built_as = Architecture(**{**fields, **sizes})
        network = built_as.build()
        fill(network, state, path, mend="Run the recognise step again")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StepError(
            f"{path} is no model of the recognise step ({first_line}); run that step again"
        ) from error
    return network.eval(), built_as, metadata


def to_device(network: nn.Module, device: str) -> nn.Module:
    """Move a network; convolutions run faster with the channels last in memory."""
    moved: nn.Module = network.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def to_input(images: Tensor, input_size: int) -> Tensor:
    """uint8 RGB [n, h, w, 3] -> float32 [n, 3, input_size, input_size] in [-1, 1].

    Larger images are shrunk by area averages.

    Raises:
        ValueError: another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"expected uint8 [n, h, w, 3], got {images.dtype} {tuple(images.shape)}")
    x = recogniser.to_input(images)
    if x.shape[2:] != (input_size, input_size):
        x = functional.interpolate(x, size=(input_size, input_size), mode="area")
    return x


@torch.inference_mode()
def embed(
    network: nn.Module, images: np.ndarray, *, input_size: int, batch_size: int | None = None
) -> np.ndarray:
    """Sums of the embeddings of images and of their mirror images, not normalised.

    Args:
        network: backbone; evaluated in evaluation mode, its mode is restored afterwards.
        images: uint8 [n, h, w, 3], RGB.
        input_size: what the backbone expects.
        batch_size: images per pass; None: what suits the device.

    Returns:
        float64 [n, embedding_dim].
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        sums: list[Tensor] = []
        for batch in torch.from_numpy(images).split(batch_size or BATCH_SIZES[device.type]):
            x = to_input(batch.to(device), input_size).contiguous(memory_format=torch.channels_last)
            sums.append(network(x).double() + network(x.flip(3)).double())
    finally:
        network.train(was_training)
    return torch.cat(sums).cpu().numpy()


def verify_benchmark(
    network: nn.Module,
    images: np.ndarray,
    same: np.ndarray,
    *,
    input_size: int,
    n_folds: int = N_FOLDS,
) -> Verification:
    """Accuracy of a backbone on one benchmark (images [2n, h, w, 3] uint8 RGB, same bool [n])."""
    embeddings = unit_rows(embed(network, images, input_size=input_size))
    return verify_pairs(pair_distances(embeddings), same, n_folds)
