"""From the images of a study to arrays, written out once more for `recompute.py`.

Only network architectures and readers of weight files come from the project, because there is no
other implementation of them. What happens to an image before and after a network is written here
from docs/metrics.md, one image at a time.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from pipeline_steps.faces.extractors import AttributeNet
from pipeline_steps.faces.judges import inception_resnet, read_dlib_resnet
from pipeline_steps.faces.pose import SixDRepNet
from pipeline_steps.faces.recogniser import build_network, read_state_dict, weights_file
from pipeline_steps.io.weights import Weights, locate, placed
from recomputed.landmarks import TEMPLATE, landmark_pose, similarity

Array = np.ndarray[Any, Any]
AT_ONCE = 16  # images in a pass; no result may depend on it

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """One set of aligned faces.

    Attributes:
        folder: where they lie.
        files: names below it, in the manifest's order [n].
        people: whose they are [n]; in the wild everybody is somebody else.
        landmarks: five points of each in its source image, in pixels [n, 5, 2].
    """

    folder: Path
    files: list[str]
    people: list[str]
    landmarks: Array

    def pixels(self, index: int) -> Array:
        """Image `index`, uint8 [112, 112, 3] RGB."""
        with Image.open(opened(self.folder / self.files[index])) as image:
            if image.mode != "RGB" or image.size != (112, 112):
                raise ValueError(f"{self.files[index]} is {image.mode} {image.size}")
            return np.array(image)


def images_below(folder: Path) -> list[str]:
    """Names of all images below a folder, those in tar shards too."""
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*.png")]
    for shard in folder.rglob("images.tar"):
        with tarfile.open(shard) as archive:
            found += archive.getnames()
    return found


def opened(place: Path) -> io.BytesIO:
    """An image's bytes, from its file or from the shard beside it."""
    if place.is_file() or not place.with_name("images.tar").is_file():
        return io.BytesIO(place.read_bytes())
    with tarfile.open(place.with_name("images.tar")) as archive:
        member = archive.extractfile(f"{place.parent.name}/{place.name}")
        return io.BytesIO(member.read() if member else b"")


def read_set(folder: Path) -> tuple[Images, list[str]]:
    """The images of `aligned/<source>/`, and what is wrong with its manifest."""
    manifest = pd.read_parquet(folder / "manifest.parquet")
    kept = manifest[manifest["kept"]]
    files = [str(file) for file in kept["file"]]
    people = [file.split("/")[0] for file in files]
    wrong = []
    on_disk = images_below(folder)
    if set(on_disk) != set(files) or len(set(files)) != len(files):
        wrong.append(f"{len(on_disk)} images lie there, the manifest keeps {len(files)}")
    named = [str(person) for person in kept["identity"]]
    if any("/" in f and p != n for f, p, n in zip(files, people, named, strict=True)):
        wrong.append("the manifest and the folders name other people")
    if (manifest.loc[~manifest["kept"], "reason"].fillna("") == "").any():
        wrong.append("an image is left out without a reason")
    unknown = np.full(10, np.nan)  # of sets whose faces were aligned by others
    given = [unknown if points is None else np.ravel(points) for points in kept["landmarks"]]
    landmarks = np.array(given, np.float64)
    return Images(folder, files, people, landmarks.reshape(-1, 5, 2)), wrong


def features_of(images: Images, config: Path, rows: list[int] | None = None) -> Array:
    """Features of a set by the extractor of a frozen configuration.

    Args:
        images: the set.
        config: config/features/<extractor>.json of the study.
        rows: which images; None: all.

    Returns:
        float32 [n, d].
    """
    entry = json.loads(config.read_text("utf-8"))["weights"]["extractor"]
    weights = Weights.model_validate(placed(entry))
    rows = list(range(len(images.files))) if rows is None else rows
    if weights.architecture == "landmarks":
        focal = float(str(weights.options.get("focal_lengths_per_side", 4.0)))
        return np.array([landmark_pose(images.landmarks[row], focal) for row in rows], np.float32)
    prepare, network = _network(weights)
    found = []
    for start in range(0, len(rows), AT_ONCE):
        batch = [prepare(images.pixels(row)) for row in rows[start : start + AT_ONCE]]
        with torch.inference_mode():
            found.append(network(torch.from_numpy(np.stack(batch).astype(np.float32))).numpy())
    return np.concatenate(found)


def prompts_read(images: Images, config: Path, samples: Path, rows: list[int]) -> Array:
    """What whole images show of what their prompts ask for, one after the other, float32 [n, 1]."""
    entry = json.loads(config.read_text("utf-8"))["weights"]["extractor"]
    weights = Weights.model_validate(placed(entry))
    aligned = pd.read_parquet(images.folder / "manifest.parquet").set_index("file")
    made = pd.read_parquet(samples).set_index("file")
    found = []
    for row in rows:
        name = str(aligned.loc[images.files[row], "source_file"])
        with Image.open(opened(samples.parent / name)) as image:
            prompt = str(made.loc[name, "prompt"])
            found.append(_shown(weights, np.array(image.convert("RGB")), prompt))
    return np.array(found, np.float32).reshape(-1, 1)


def _shown(weights: Weights, image: Array, prompt: str) -> float:
    with torch.inference_mode():
        if weights.architecture == "attributes":
            network = AttributeNet.from_state_dict(read_state_dict(weights_file(weights)))
            logits = network(torch.from_numpy(minus_one_to_one(image))[None])
            classes: Any = weights.options["classes"]
            found = []
            for attribute, words in classes.items():
                asked = [w for w in words if f" {w} " in prompt.replace(",", " ") + " "]
                if asked:
                    found.append(words[int(logits[attribute][0].argmax())] == asked[0])
            return sum(found) / len(found) if found else -1.0
        from transformers import CLIPModel, CLIPTokenizer

        clip = CLIPModel.from_pretrained(locate(weights)).float().eval()
        side, most = clip.config.vision_config.image_size, clip.config.text_config
        words = CLIPTokenizer.from_pretrained(locate(weights))(
            prompt, truncation=True, max_length=most.max_position_embeddings, return_tensors="pt"
        )
        pixels = torch.from_numpy(standard(enlarged(image, side), *CLIP)).float()[None]
        both = clip(pixel_values=pixels, **words)
        return max(0.0, 100 * float((unit(both.image_embeds) * unit(both.text_embeds)).sum()))


Prepare = Callable[[Array], Array]
Network = Callable[[torch.Tensor], torch.Tensor]


def _network(weights: Weights) -> tuple[Prepare, Network]:
    """What makes an image the network's input [3, h, w], and the network: batch -> [n, d]."""
    kind = weights.task, weights.architecture
    if weights.architecture == "dlib-resnet":
        dlib = read_dlib_resnet(weights_file(weights)).eval()
        return dlib_chip, lambda x: unit(dlib(x))
    if weights.architecture == "inception-resnet-v1":
        state = read_state_dict(weights_file(weights))
        facenet = inception_resnet(state).eval()
        facenet.load_state_dict(state)
        return lambda image: (bilinear(image, 160) - 127.5) / 128, facenet
    if weights.task in ("recogniser", "quality"):
        state = read_state_dict(weights_file(weights))
        iresnet = build_network(weights, quality_head="qs.weight" in state)
        iresnet.load_state_dict(state)
        iresnet.eval()
        if weights.task == "quality":
            return minus_one_to_one, lambda x: iresnet.forward_with_quality(x)[1].reshape(-1, 1)
        return minus_one_to_one, lambda x: unit(iresnet(x))
    if kind == ("features", "attributes"):
        attributes = AttributeNet.from_state_dict(read_state_dict(weights_file(weights)))
        return minus_one_to_one, attributes.features
    if kind == ("features", "inception-v3"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inception: Any = torch.jit.load(locate(weights), map_location="cpu").eval()
        return (
            lambda image: (enlarged(image, 299) - 128.0) / 128.0,
            lambda x: inception.layers(x).flatten(1),
        )
    if kind == ("features", "clip"):
        from transformers import CLIPVisionModelWithProjection

        clip = CLIPVisionModelWithProjection.from_pretrained(locate(weights)).float().eval()
        side = int(clip.config.image_size)
        return lambda image: standard(enlarged(image, side), *CLIP), lambda x: clip(x).image_embeds
    if kind == ("features", "dinov2"):
        from transformers import Dinov2Model

        dino = Dinov2Model.from_pretrained(locate(weights)).float().eval()
        return (
            lambda image: standard(enlarged(image, 224), *IMAGENET),
            lambda x: dino(x).last_hidden_state[:, 0],
        )
    if kind == ("pose", "sixdrepnet"):
        head = SixDRepNet()
        head.load_state_dict(read_state_dict(weights_file(weights)))
        head.eval()
        return lambda image: standard(bilinear(bordered(image), 224), *IMAGENET), (
            lambda x: torch.tensor([angles(rotation.numpy()) for rotation in head(x)])
        )
    raise ValueError(f"nothing is written here for {kind}: add the extractor {weights.name}")


def minus_one_to_one(image: Array) -> Array:
    """uint8 [h, w, 3] -> (x / 255 - 0.5) / 0.5 [3, h, w]."""
    return (
        (image.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    ).transpose(2, 0, 1)


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    return rows / rows.norm(dim=1, keepdim=True)


def dlib_chip(image: Array) -> Array:
    """dlib's cut of an aligned face, [3, 150, 150] in [0, 255]."""
    x, y = [0.2255, 0.7548, 0.4901, 0.2541, 0.7261], [0.2160, 0.2160, 0.5156, 0.7802, 0.7802]
    a, b = similarity(TEMPLATE, (np.column_stack([x, y]) + 0.25) / 1.5 * 150)
    across, down = np.meshgrid(np.arange(150), np.arange(150))
    place = (across + 1j * down - b) / a
    channels = [
        map_coordinates(image[:, :, c].astype(float), [place.imag, place.real], order=1)
        for c in range(3)
    ]
    return np.round(np.stack(channels))


def enlarged(image: Array, side: int) -> Array:
    """Bicubic by PIL in floating point, channel by channel, [3, side, side] in [0, 255]."""
    channels = []
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        channels.append(np.array(plane.resize((side, side), Image.Resampling.BICUBIC)))
    return np.clip(np.stack(channels), 0.0, 255.0)


def bilinear(image: Array, side: int) -> Array:
    """Bilinear by PIL in 8 bits, [3, side, side] in [0, 255]."""
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32).transpose(2, 0, 1)


def standard(x: Array, mean: tuple[float, ...], sd: tuple[float, ...]) -> Array:
    """(x / 255 - mean) / sd of [3, h, w], by channel."""
    return np.stack([(x[c] / 255.0 - mean[c]) / sd[c] for c in range(3)])


def bordered(image: Array) -> Array:
    """The image on black, 30 pixels wider on each side."""
    large = np.zeros((image.shape[0] + 60, image.shape[1] + 60, 3), np.uint8)
    large[30:-30, 30:-30] = image
    return large


def angles(rotation: Array) -> list[float]:
    """Pitch, yaw, roll in degrees of 6DRepNet's rotation [3, 3]; yaw > 0 to the image's right."""
    level = math.sqrt(rotation[0, 0] ** 2 + rotation[1, 0] ** 2)
    pitch = math.atan2(rotation[2, 1], rotation[2, 2])
    yaw = -math.atan2(-rotation[2, 0], level)
    roll = math.atan2(rotation[1, 0], rotation[0, 0])
    return [math.degrees(angle) for angle in (pitch, yaw, roll)]
