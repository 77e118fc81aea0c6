"""Face recognition networks with their weights: embeddings and face-image quality.

Input convention of ArcFace and CR-FIQA: RGB, 112x112 pixels, (x / 255 - 0.5) / 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.faces.detection import crop_and_resize
from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet, state_dict_of_onnx
from pipeline_steps.io.weights import Weights, fill, locate, made_by, verify
from pipeline_steps.runtime.errors import StepError

N = TypeVar("N", bound=nn.Module)

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".onnx", ".dat")
FAR_OUTSIDE = 4.0  # a decoder overshoots [-1, 1] a little; 0..255 goes far beyond
PREPROCESSING = "RGB 112x112, (x / 255 - 0.5) / 0.5"
FACE_REGION = "largest MTCNN box of the image, cut to whole pixels, stretched bilinearly"


class Recogniser:
    """A trained iResNet in evaluation mode, its parameters frozen.

    Args:
        network: the network with its weights.
        device: where it runs, "cpu" or "cuda".
    """

    def __init__(self, network: IResNet, device: str | torch.device = "cpu") -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.input_size = network.input_size
        self.embedding_dim = network.embedding_dim

    @property
    def has_quality(self) -> bool:
        """Whether `quality` is there."""
        return self.network.qs is not None

    def embed_tensor(self, x: Tensor) -> Tensor:
        """Differentiable embedding.

        Args:
            x: [n, 3, input_size, input_size] floating point, RGB in [-1, 1], on the device. On a
                GPU the range is the caller's duty: checking it would wait for the device.

        Returns:
            [n, embedding_dim], not normalised.

        Raises:
            ValueError: another shape, an integer dtype, or values far from [-1, 1].
        """
        expected = (3, self.input_size, self.input_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected or not x.is_floating_point():
            raise ValueError(
                f"expected floating-point images [n, {', '.join(map(str, expected))}] in [-1, 1], "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            largest = float(x.detach().abs().amax())
            if largest > FAR_OUTSIDE:
                raise ValueError(
                    f"expected RGB in [-1, 1], got values up to {largest:.4g}: scale images from "
                    "0..255 by x / 127.5 - 1"
                )
        return self.network(x)

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.float32]:
        """Unit embeddings of faces.

        Args:
            images: uint8 [n, input_size, input_size, 3] RGB.
            batch_size: images per pass; changes no result.

        Returns:
            float32 [n, embedding_dim], rows of length 1.

        Raises:
            ValueError: another dtype or shape.
        """
        rows = [F.normalize(self.network(x)) for x in self._batches(images, batch_size)]
        empty = torch.zeros(0, self.embedding_dim, device=self.device)
        return torch.cat([empty, *rows]).cpu().numpy()

    @torch.inference_mode()
    def embed_regions(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.floating]]
    ) -> NDArray[np.float32]:
        """Unit embeddings float32 [n, embedding_dim] as the identity losses compare faces: a box
        [4] of each image uint8 [h, w, 3] RGB, cut out and stretched.
        """
        rows = [np.zeros((0, self.embedding_dim), np.float32)]
        for image, box in zip(images, boxes, strict=True):
            whole = to_input(torch.from_numpy(image[None])).to(self.device)
            bounds = torch.from_numpy(np.asarray(box, np.float32)[None])
            embedding = self.embed_tensor(crop_and_resize(whole, bounds, self.input_size))
            rows.append(F.normalize(embedding).cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def quality(self, images: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.float32]:
        """Face-image quality (CR-FIQA) [n]: how well a face is recognised, higher is better.

        Args and errors as of `embed`; also a ValueError where the network has no quality head.
        """
        batches = self._batches(images, batch_size)
        scores = [self.network.forward_with_quality(x)[1] for x in batches]
        return torch.cat([torch.zeros(0, device=self.device), *scores]).cpu().numpy()

    def _batches(self, images: NDArray[np.uint8], batch_size: int) -> Iterator[Tensor]:
        side = self.input_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"expected uint8 RGB faces [n, {side}, {side}, 3], got {images.dtype} "
                f"{images.shape}"
            )
        for start in range(0, len(images), batch_size):
            yield to_input(torch.from_numpy(images[start : start + batch_size]).to(self.device))


def to_input(images: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] in 0..255 -> float32 [n, 3, h, w] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(255.0).sub(0.5).div(0.5).contiguous()


def embedded_by(weights: Weights) -> dict[str, str]:
    """The header of embeddings as the identity losses compare them, see ``weights.made_by``."""
    return made_by(weights, PREPROCESSING, face_region=FACE_REGION)


def load_recogniser(weights: Weights, device: str | torch.device = "cpu") -> Recogniser:
    """The network of a registry entry.

    Architectures are `iresnet18`, `iresnet34`, `iresnet50`, `iresnet100`, and `iresnet` with the
    options layers (4 counts), widths (5 counts, the stem first) and, where they differ from 512 and
    112, embedding_dim and input_size. A quality head is there when the file has one.

    Raises:
        StepError: see `load_network`.
    """

    def build(state: dict[str, Tensor]) -> IResNet:
        return build_network(weights, quality_head="qs.weight" in state)

    return Recogniser(load_network(weights, build), device)


def build_network(weights: Weights, *, quality_head: bool = False) -> IResNet:
    """An untrained network as a registry entry describes it.

    Raises:
        ValueError: unknown architecture; TypeError: unknown option.
    """
    options: dict[str, Any] = dict(weights.options)
    if weights.architecture in NAMED_LAYERS:
        options.setdefault("layers", NAMED_LAYERS[weights.architecture])
    elif weights.architecture != "iresnet":
        raise ValueError(
            f"unknown recogniser architecture, expected iresnet or one of {sorted(NAMED_LAYERS)}"
        )
    return IResNet(**options, quality_head=quality_head)


def load_network(weights: Weights, build: Callable[[dict[str, Tensor]], N]) -> N:
    """The network of a registry entry's one file, built by what its tensors tell.

    Raises:
        StepError: the file is missing, is not the pinned one, is of an unknown kind or broken,
            lacks tensors or holds others, or ``build`` raises a ValueError, TypeError or
            RuntimeError.
    """
    verify(weights)
    path = weights_file(weights)
    state = read_state_dict(path)
    try:
        network = build(state)
        fill(network, state, path)
        return network
    except (ValueError, TypeError, RuntimeError) as error:
        raise StepError(
            f"weights {weights.name!r}: {path} does not fit the architecture "
            f"{weights.architecture!r} with options {weights.options}: {error}"
        ) from error


def weights_file(weights: Weights) -> Path:
    """The one weight file of a registry entry, which may name the file or its folder.

    Raises:
        StepError: nothing is there, or the folder does not hold exactly one weight file.
    """
    place = locate(weights)
    if place.is_file():
        return place
    files = sorted(file for file in place.iterdir() if file.suffix in WEIGHT_FILES)
    if len(files) != 1:
        raise StepError(
            f"weights {weights.name!r}: {place} holds {len(files)} weight files, expected one; "
            "name the file itself as the source"
        )
    return files[0]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .onnx file (an iResNet's), on the CPU.

    Only tensors are unpickled.

    Raises:
        StepError: another kind of file, or a broken one.
    """
    if path.suffix == ".onnx":
        return state_dict_of_onnx(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model_state_dict", state)
            return {str(name).removeprefix("module."): value for name, value in state.items()}
    except Exception as error:  # each format has its own exceptions for broken files
        raise StepError(f"weights file {path} cannot be read: {error}") from error
    raise StepError(f"weights file {path}: expected .safetensors, .pth or .onnx")
