"""Features of aligned faces: one extractor for each architecture of the weights registry.

An extractor states its preprocessing in words, takes aligned faces and returns float32 [n, d]. A
further one is a function and an entry in EXTRACTORS. What faces have to be like (type, range, size,
colour order) is checked in one place, before any extractor sees them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline_steps.faces.attributes import ATTRIBUTES_PREPROCESSING, AttributeNet
from pipeline_steps.faces.colour import check_rgb
from pipeline_steps.faces.iresnet import NAMED_LAYERS
from pipeline_steps.faces.pixels import checked, normalised, resized
from pipeline_steps.faces.pose import EXTRACTOR as POSE_EXTRACTOR
from pipeline_steps.faces.pose import FOCAL_LENGTHS_PER_SIDE, head_pose
from pipeline_steps.faces.recogniser import (
    PREPROCESSING,
    load_recogniser,
    read_state_dict,
    to_input,
    weights_file,
)
from pipeline_steps.faces.sixdrepnet import BORDER, SixDRepNet, pose_of
from pipeline_steps.faces.sixdrepnet import INPUT_SIZE as SIXDREPNET_SIDE
from pipeline_steps.io.weights import Weights, locate, verify
from pipeline_steps.runtime.errors import StepError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_SIDE = 299
DINOV2_SIDE = 224


@dataclass(frozen=True)
class AlignedFaces:
    """A batch of aligned faces.

    Attributes:
        images: uint8 [n, 112, 112, 3] RGB.
        landmarks: float64 [n, 5, 2] in the pixels of the aligned images.
        colours_checked: the colour order was judged already, on more faces than these.
    """

    images: NDArray[np.uint8]
    landmarks: NDArray[np.float64]
    colours_checked: bool = False


@dataclass(frozen=True)
class Extractor:
    """A way to turn aligned faces into features.

    Attributes:
        preprocessing: size, range and interpolation, in words.
        extract: aligned faces -> float32 [n, d]; raises ValueError for images of another type,
            range, size or colour order.
    """

    preprocessing: str
    extract: Callable[[AlignedFaces], NDArray[np.float32]]


def load_extractor(weights: Weights, device: str | torch.device = "cpu") -> Extractor:
    """The extractor of a registry entry.

    Raises:
        StepError: the weights are missing or unfit, or no extractor has this task and architecture.
    """
    build = EXTRACTORS.get((weights.task, weights.architecture))
    if build is None:
        known = ", ".join(f"{task}/{architecture}" for task, architecture in sorted(EXTRACTORS))
        raise StepError(
            f"weights {weights.name!r}: no extractor for {weights.task}/{weights.architecture}; "
            f"there are {known}"
        )
    extractor = build(weights, device)

    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        checked(faces.images)
        if not faces.colours_checked:
            check_rgb(faces.images)
        return extractor.extract(faces)

    return replace(extractor, extract=extract)


def _recogniser(weights: Weights, device: str | torch.device) -> Extractor:
    """Embeddings of length 1."""
    recogniser = load_recogniser(weights, device)
    return Extractor(PREPROCESSING, lambda faces: recogniser.embed(faces.images))


def _quality(weights: Weights, device: str | torch.device) -> Extractor:
    """Face-image quality [n, 1]."""
    recogniser = load_recogniser(weights, device)
    if not recogniser.has_quality:
        raise StepError(f"weights {weights.name!r} have no quality head (qs.weight, qs.bias)")
    return Extractor(PREPROCESSING, lambda faces: recogniser.quality(faces.images)[:, None])


def _landmark_pose(weights: Weights, _device: str | torch.device) -> Extractor:
    """Pitch, yaw, roll [n, 3] in degrees; the roll is what alignment leaves over."""
    focal = float(str(weights.options.get("focal_lengths_per_side", FOCAL_LENGTHS_PER_SIDE)))

    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        side = faces.images.shape[1]
        return head_pose(faces.landmarks, side, focal_length=focal * side).astype(np.float32)

    return Extractor(f"{POSE_EXTRACTOR} in the aligned face, focal length {focal:g} sides", extract)


def _sixdrepnet(weights: Weights, device: str | torch.device) -> Extractor:
    """Pitch, yaw, roll [n, 3] in degrees, with the signs of `pose`."""
    try:
        verify(weights)
    except StepError as error:
        raise StepError(
            f"{error}. Without them: landmark_pose as score.pose.extractor, which needs no weights"
        ) from error
    path = weights_file(weights)
    network = SixDRepNet()
    try:
        network.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise StepError(f"weights {weights.name!r}: {path} is no 6DRepNet: {error}") from error
    network.eval().to(device)

    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        sides = ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))
        pixels = resized(np.pad(faces.images, sides), SIXDREPNET_SIDE)
        x = normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)
        return _run(lambda batch: pose_of(network(batch)), x, device)

    return Extractor(
        f"RGB, {BORDER} px black border, PIL bicubic to {SIXDREPNET_SIDE}x{SIXDREPNET_SIDE} in "
        "floating point, ImageNet's mean and standard deviation",
        extract,
    )


def _attributes(weights: Weights, device: str | torch.device) -> Extractor:
    """Penultimate activations of the attribute classifier."""
    verify(weights)
    path = weights_file(weights)
    try:
        network = AttributeNet.from_state_dict(read_state_dict(path)).to(device)
    except ValueError as error:
        raise StepError(f"weights {weights.name!r}: {path}: {error}") from error

    @torch.inference_mode()
    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        x = to_input(torch.from_numpy(faces.images).to(device))
        return _array(network.features(x))

    return Extractor(ATTRIBUTES_PREPROCESSING, extract)


def _inception(weights: Weights, device: str | torch.device) -> Extractor:
    """Pool features [n, 2048] of the Fréchet inception distance's own network.

    Source: Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation", CVPR
    2022 (clean-fid): the TorchScript file of StyleGAN's metrics, after antialiased resizing.
    """
    verify(weights)
    path = locate(weights)
    try:
        with warnings.catch_warnings():
            # TorchScript is the only form in which these weights were published.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
            network: Any = torch.jit.load(path, map_location=device).eval()
        layers = network.layers
    except (RuntimeError, AttributeError, OSError) as error:
        raise StepError(
            f"weights {weights.name!r}: {path} is not clean-fid's TorchScript Inception: {error}"
        ) from error

    @torch.inference_mode()
    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        x = resized(faces.images, INCEPTION_SIDE).to(device)
        return _array(layers((x - 128.0) / 128.0).flatten(1))

    return Extractor("RGB, PIL bicubic to 299x299 in floating point, (x - 128) / 128", extract)


def _clip(weights: Weights, device: str | torch.device) -> Extractor:
    """Image embeddings, not normalised.

    Source: Jayasumana et al., "Rethinking FID: Towards a better evaluation metric for image
    generation", CVPR 2024 (CMMD), with CLIP ViT-L/14 at 336 pixels.
    """
    from transformers import CLIPVisionModelWithProjection

    network = _from_folder(weights, CLIPVisionModelWithProjection, device)
    side = int(network.config.image_size)  # its position embeddings allow no other
    return Extractor(
        f"RGB, PIL bicubic to {side}x{side} in floating point, CLIP's mean and standard deviation",
        lambda faces: _run(
            lambda x: network(pixel_values=x).image_embeds,
            normalised(resized(faces.images, side), CLIP_MEAN, CLIP_STD),
            device,
        ),
    )


def _dinov2(weights: Weights, device: str | torch.device) -> Extractor:
    """Class token after the last normalisation.

    Source: Stein et al., "Exposing flaws of generative model evaluation metrics", NeurIPS 2023.
    """
    from transformers import Dinov2Model

    network = _from_folder(weights, Dinov2Model, device)
    return Extractor(
        "RGB, PIL bicubic to 224x224 in floating point, ImageNet's mean and standard deviation",
        lambda faces: _run(
            lambda x: network(pixel_values=x).last_hidden_state[:, 0],
            normalised(resized(faces.images, DINOV2_SIDE), IMAGENET_MEAN, IMAGENET_STD),
            device,
        ),
    )


EXTRACTORS: dict[tuple[str, str], Callable[[Weights, str | torch.device], Extractor]] = {
    **{("recogniser", name): _recogniser for name in ("iresnet", *NAMED_LAYERS)},
    **{("quality", name): _quality for name in ("iresnet", *NAMED_LAYERS)},
    ("pose", "landmarks"): _landmark_pose,
    ("pose", "sixdrepnet"): _sixdrepnet,
    ("features", "attributes"): _attributes,
    ("features", "inception-v3"): _inception,
    ("features", "clip"): _clip,
    ("features", "dinov2"): _dinov2,
}
"""Task and architecture of a registry entry to what builds its extractor."""


def _from_folder(weights: Weights, model: Any, device: str | torch.device) -> Any:
    """A transformers model of a local folder, in evaluation mode and single precision."""
    verify(weights)
    path = locate(weights)
    try:
        network, loading = model.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise StepError(
            f"weights {weights.name!r}: {path} cannot be opened as {model.__name__}: {error}"
        ) from error
    # Left alone, transformers would draw what a file lacks at random.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise StepError(
            f"weights {weights.name!r}: {path} cannot be opened as {model.__name__}: it lacks "
            f"{len(missing)} tensors, {missing[0]} among them"
        )
    return network.float().eval().to(device)


@torch.inference_mode()
def _run(
    network: Callable[[Tensor], Tensor], x: Tensor, device: str | torch.device
) -> NDArray[np.float32]:
    return _array(network(x.to(device)))


def _array(features: Tensor) -> NDArray[np.float32]:
    return np.asarray(features.float().cpu().numpy(), dtype=np.float32)
