"""Features of aligned faces: one extractor for each architecture of the weights registry.

An extractor states its preprocessing in words, takes aligned faces and returns float32 [n, d]. A
further one is a function and an entry in EXTRACTORS. What faces have to be like (type, range, size,
colour order) is checked in one place, before any extractor sees them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.faces import pose
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE, template_transform, transform_points
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.iresnet import NAMED_LAYERS
from pipeline_steps.faces.judges import dlib_chips, inception_resnet, read_dlib_resnet
from pipeline_steps.faces.pixels import check_rgb, checked, normalised, resized, resized_8bit
from pipeline_steps.faces.recogniser import (
    PREPROCESSING,
    load_network,
    load_recogniser,
    to_input,
    weights_file,
)
from pipeline_steps.faces.skin import typology_angles
from pipeline_steps.io.weights import Weights, fill, locate, open_network, verify
from pipeline_steps.runtime.errors import StepError

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel."""

TEXT_OF_CLIP = ("text_model.", "text_projection.", "logit_scale")  # beside the vision in one file
INCEPTION_SIDE = 299
DINOV2_SIDE = 224
FACENET_SIDE = 160


@dataclass(frozen=True)
class AlignedFaces:
    """A batch of aligned faces.

    Attributes:
        images: uint8 [n, 112, 112, 3] RGB.
        landmarks: float64 [n, 5, 2] in the pixels of the aligned images; NaN where they are not
            known, as of sets that others have aligned.
        colours_checked: the colour order was judged already, on more faces than these.
    """

    images: NDArray[np.uint8]
    landmarks: NDArray[np.float64]
    colours_checked: bool = False


def unmarked(images: Sequence[NDArray[np.uint8]]) -> AlignedFaces:
    """Aligned faces uint8 [112, 112, 3] whose landmarks are not known, their colours not judged."""
    points = np.full((len(images), 5, 2), np.nan)
    return AlignedFaces(np.stack(images), points, colours_checked=True)


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


def _dlib(weights: Weights, device: str | torch.device) -> Extractor:
    """Embeddings [n, 128] of length 1."""
    verify(weights)
    network = read_dlib_resnet(weights_file(weights)).eval().to(device)
    return _of_network(
        "RGB, mapped to dlib's 150x150 cut bilinearly, its means, / 256; then to length 1",
        lambda images: torch.from_numpy(dlib_chips(images)).permute(0, 3, 1, 2).float(),
        lambda x: F.normalize(network(x)),
        device,
    )


def _facenet(weights: Weights, device: str | torch.device) -> Extractor:
    """Embeddings [n, 512] of length 1."""
    return _of_network(
        "RGB, PIL bilinear to 160x160 in 8 bits, (x - 127.5) / 128",
        lambda images: (resized_8bit(images, FACENET_SIDE) - 127.5) / 128.0,
        load_network(weights, inception_resnet).eval().to(device),
        device,
    )


def _quality(weights: Weights, device: str | torch.device) -> Extractor:
    """Face-image quality [n, 1]."""
    recogniser = load_recogniser(weights, device)
    if not recogniser.has_quality:
        raise StepError(f"weights {weights.name!r} have no quality head (qs.weight, qs.bias)")
    return Extractor(PREPROCESSING, lambda faces: recogniser.quality(faces.images)[:, None])


def _landmark_pose(weights: Weights, device: str | torch.device) -> Extractor:
    """Pitch, yaw, roll [n, 3] in degrees; the roll is what alignment leaves over.

    Landmarks that are not known are searched; a face that is not found counts as frontal.
    """
    focal = float(str(weights.options.get("focal_lengths_per_side", pose.FOCAL_LENGTHS_PER_SIDE)))

    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        side, landmarks = faces.images.shape[1], faces.landmarks.copy()
        unknown = np.flatnonzero(np.isnan(landmarks).any(axis=(1, 2)))
        if len(unknown):
            searched = Detector(device).detect(list(faces.images[unknown]), padding=0.5)
        for row, face in zip(unknown, searched if len(unknown) else (), strict=True):
            points = ARCFACE_TEMPLATE if face is None else face.landmarks
            landmarks[row] = transform_points(template_transform(points, side), points)
        angles = pose.head_pose(landmarks, side, focal_length=focal * side)
        return angles.astype(np.float32)

    words = f"{pose.EXTRACTOR} in the aligned face, focal length {focal:g} sides"
    return Extractor(words, extract)


def _skin_tone(_weights: Weights, _device: str | torch.device) -> Extractor:
    """Individual Typology Angle [n, 1] in degrees."""
    return Extractor(
        "medians of CIELAB (D65) over forehead and cheeks of the template",
        lambda faces: typology_angles(faces.images)[:, None],
    )


def _sixdrepnet(weights: Weights, device: str | torch.device) -> Extractor:
    """Pitch, yaw, roll [n, 3] in degrees, with the signs of `pose`.

    Images are resized as by the authors' `regressor.py` (github.com/thohemp/6DRepNet), which hands
    PIL images to torchvision's Resize.
    """
    try:
        verify(weights)
    except StepError as error:
        raise StepError(
            f"{error}. Without them: landmark_pose as score.pose.extractor, which needs no weights"
        ) from error
    side, border = pose.SIXDREPNET_SIDE, pose.SIXDREPNET_BORDER

    def prepared(images: NDArray[np.uint8]) -> Tensor:
        bordered = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
        return normalised(resized_8bit(bordered, side), *IMAGENET)

    network = load_network(weights, lambda _: pose.SixDRepNet()).eval().to(device)
    return _of_network(
        f"RGB, {border} px black border, PIL bilinear to {side}x{side} in 8 bits, "
        "ImageNet's mean and standard deviation",
        prepared,
        lambda x: pose.pose_of(network(x)),
        device,
    )


class AttributeNet(nn.Module):
    """A small classifier of visible attributes, whose penultimate activations describe an image.

    In the embedded world it has Inception's role in the Fréchet distance and the kNN manifolds: a
    network trained to tell the world's attributes apart, without looking at identity. Convolutions
    that halve the resolution, global average pooling, one linear head each.

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
            StepError, ValueError, RuntimeError: the tensors are not those of such a network.
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
        fill(network, state, "the attribute network's file")
        return network.eval()


def _attributes(weights: Weights, device: str | torch.device) -> Extractor:
    """Penultimate activations of the attribute classifier."""
    return _of_network(
        "RGB, any size, (x / 255 - 0.5) / 0.5",
        lambda images: to_input(torch.from_numpy(images)),
        load_network(weights, AttributeNet.from_state_dict).to(device).features,
        device,
    )


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
    return _of_network(
        "RGB, PIL bicubic to 299x299 in floating point, (x - 128) / 128",
        lambda images: (resized(images, INCEPTION_SIDE) - 128.0) / 128.0,
        lambda x: layers(x).flatten(1),
        device,
    )


def _clip(weights: Weights, device: str | torch.device) -> Extractor:
    """Image embeddings, not normalised.

    Source: Jayasumana et al., "Rethinking FID: Towards a better evaluation metric for image
    generation", CVPR 2024 (CMMD), with CLIP ViT-L/14 at 336 pixels.
    """
    from transformers import CLIPVisionModelWithProjection

    network = from_folder(weights, CLIPVisionModelWithProjection, device, TEXT_OF_CLIP)
    side = int(network.config.image_size)  # its position embeddings allow no other
    return _of_network(
        f"RGB, PIL bicubic to {side}x{side} in floating point, CLIP's mean and standard deviation",
        lambda images: normalised(resized(images, side), *CLIP),
        lambda x: network(pixel_values=x).image_embeds,
        device,
    )


def _dinov2(weights: Weights, device: str | torch.device) -> Extractor:
    """Class token after the last normalisation.

    Source: Stein et al., "Exposing flaws of generative model evaluation metrics", NeurIPS 2023.
    """
    from transformers import Dinov2Model

    network = from_folder(weights, Dinov2Model, device)
    return _of_network(
        "RGB, PIL bicubic to 224x224 in floating point, ImageNet's mean and standard deviation",
        lambda images: normalised(resized(images, DINOV2_SIDE), *IMAGENET),
        lambda x: network(pixel_values=x).last_hidden_state[:, 0],
        device,
    )


EXTRACTORS: dict[tuple[str, str], Callable[[Weights, str | torch.device], Extractor]] = {
    **{("recogniser", name): _recogniser for name in ("iresnet", *NAMED_LAYERS)},
    ("recogniser", "dlib-resnet"): _dlib,
    ("recogniser", "inception-resnet-v1"): _facenet,
    **{("quality", name): _quality for name in ("iresnet", *NAMED_LAYERS)},
    ("pose", "landmarks"): _landmark_pose,
    ("pose", "sixdrepnet"): _sixdrepnet,
    ("skin_tone", "typology-angle"): _skin_tone,
    ("features", "attributes"): _attributes,
    ("features", "inception-v3"): _inception,
    ("features", "clip"): _clip,
    ("features", "dinov2"): _dinov2,
}
"""Task and architecture of a registry entry to what builds its extractor."""


def from_folder(
    weights: Weights, model: Any, device: str | torch.device, beside: tuple[str, ...] = ()
) -> Any:
    """A transformers model of a local folder, in evaluation mode and single precision."""
    verify(weights)
    path = locate(weights)
    try:
        network = open_network(model, path, beside=beside)
    except (OSError, ValueError, RuntimeError) as error:
        raise StepError(
            f"weights {weights.name!r}: {path} cannot be opened as {model.__name__}: {error}"
        ) from error
    return network.eval().to(device)


def _of_network(
    preprocessing: str,
    prepared: Callable[[NDArray[np.uint8]], Tensor],
    network: Callable[[Tensor], Tensor],
    device: str | torch.device,
) -> Extractor:
    """The extractor that runs a network on a device, on what ``prepared`` makes of images."""

    @torch.inference_mode()
    def extract(faces: AlignedFaces) -> NDArray[np.float32]:
        rows = network(prepared(faces.images).to(device)).float().cpu().numpy()
        return np.asarray(rows, dtype=np.float32)

    return Extractor(preprocessing, extract)
