"""Face Fusion for the sampler: whose photographs an image looks at, read once and kept.

References are clean (t = 0), so what the frozen network makes of them is the same at every step of
every image: their keys are computed once for a person. At the width of SD-2.1 a reference's take
some 90 MB in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion, Keys, Look, together
from pipeline_steps.diffusion.sampling.plan import Origin, Prompted, generator_file
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.io.images import BadImage, noted_bytes, read_image, resized
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import HALVES, ReferenceSettings, SampleSettings

Photograph = Mapping[Any, Any]  # a row of the dataset's manifest
OF_REFERENCES = "references"  # a row's weights_source: one set of weights, and photographs


class References(Prompted):
    """Arguments are those of ``plan.hand``."""

    at_once: ClassVar[Mapping[str, int]] = {"cpu": 16, "cuda": 8}

    def __init__(self, frozen: Frozen[SampleSettings], dataset: Path, folder: Path | None) -> None:
        self._settings = frozen.settings.references or ReferenceSettings()
        self._path = generator_file(frozen, folder, FILE_NAME)
        self._dataset = dataset
        self._chosen: dict[str, dict[str, str]] = {}  # identity -> file -> sha256
        manifest = read_manifest(dataset / "manifest.parquet", ["identity", "file", "kept"])
        rank = _turned
        if self._settings.order == "quality":
            rank = partial(_lack_of_quality, load_recogniser(frozen.weights["quality"]), dataset)
        for identity, own in manifest[manifest["kept"].astype(bool)].groupby("identity"):
            rows = own.sort_values("file").to_dict("records")
            self._chosen[str(identity)] = choose(rows, str(identity), self._settings, rank)

    def origin(self, identity: str, token: str) -> Origin:
        """Of the weights and the references together."""
        how = self._settings.model_dump(mode="json", include={"count", "guide_away"})
        digests = list(self._references(identity).values())
        return sha256_json([sha256_file(self._path), digests, how]), OF_REFERENCES

    def _references(self, identity: str) -> dict[str, str]:
        if not self._chosen.get(identity):
            raise StepError(f"{identity} has no usable photograph: there is nothing to look at")
        return self._chosen[identity]

    @contextmanager
    def on(self, base: BaseModel, identities: Sequence[str]) -> Iterator[OnePersonEach]:
        fusion = FaceFusion(base.unet)
        try:
            try:
                fusion.load(load_file(self._path))
            except (SafetensorError, ValueError) as error:
                raise StepError(f"{self._path} does not fit {base.name!r}: {error}") from error
            images = [self._read(identity, base.resolution) for identity in identities]
            with torch.no_grad():  # identity guidance may ask for gradients beside them
                keys = [keys_of(base, fusion, own.to(base.device)) for own in images]
            yield OnePersonEach(fusion, joined(keys), self._settings.guide_away)
        finally:
            fusion.remove()

    def _read(self, identity: str, side: int) -> Tensor:
        """References uint8 [count, 3, side, side], in turn where there are fewer."""
        noted = self._references(identity)
        contents = [
            noted_bytes(self._dataset / f, digest, "prepare") for f, digest in noted.items()
        ]
        images = [resized(read_image(content), side) for content in contents]
        repeated = [images[k % len(images)] for k in range(self._settings.count)]
        return torch.from_numpy(np.stack(repeated)).permute(0, 3, 1, 2)


def choose(
    rows: Sequence[Photograph],
    identity: str,
    settings: ReferenceSettings,
    rank: Callable[[Photograph], float],
) -> dict[str, str]:
    """Files and hashes of the photographs that an identity is shown by, the best first.

    Args:
        rows: Of the dataset's manifest, kept and of this identity.
        rank: Lower is better; not asked where files are taken by name.

    Raises:
        StepError: a photograph that the settings name is none of the identity's.
    """
    found = {str(row["file"]): str(row["sha256"]) for row in rows}
    if named := settings.named.get(identity):
        files = [file for name in named for file in found if Path(file).name == name]
        if len(files) != len(named):
            known, asked = ", ".join(sorted(Path(file).name for file in found)), " or ".join(named)
            raise StepError(
                f"sample.references.named: {identity} has no {asked} in which a face was found; "
                f"there are {known}"
            )
        return {file: found[file] for file in files}
    ranked = rows if settings.order == "name" else sorted(rows, key=rank)
    files = [str(row["file"]) for row in ranked]
    return {file: found[file] for file in files[: settings.count]}


def _lack_of_quality(network: Recogniser, dataset: Path, photograph: Photograph) -> float:
    """Minus the quality of the aligned face; without landmarks worse than any."""
    if photograph.get("landmarks") is None:
        return float("inf")
    content = noted_bytes(dataset / photograph["file"], photograph["sha256"], "prepare")
    points = np.reshape(np.asarray(photograph["landmarks"], dtype=np.float64), (5, 2))
    return -float(network.quality(align_to_template(read_image(content), points)[None])[0])


def _turned(photograph: Photograph) -> float:
    """How far a face looks aside: the nose from between the eyes, in distances of the eyes."""
    if (landmarks := photograph.get("landmarks")) is None:
        return 0.0
    left, right, nose = np.reshape(np.asarray(landmarks, dtype=np.float64), (5, 2))[:3]
    return float(abs(nose[0] - (left[0] + right[0]) / 2) / max(np.linalg.norm(right - left), 1e-6))


def keys_of(base: BaseModel, fusion: FaceFusion, images: Tensor) -> Keys:
    """Keys of one person's references uint8 [n, 3, side, side]; of equal ones bit for bit equal."""
    clean, _ = base.encode_images(to_signed(images))
    return fusion.keys({name: hidden[None] for name, hidden in fusion.read(base, clean).items()})


def joined(people: Sequence[Keys]) -> Keys:
    """Keys of several people, in their order."""
    return {
        name: (
            torch.cat([keys[name][0] for keys in people]),
            torch.cat([keys[name][1] for keys in people]),
        )
        for name in people[0]
    }


class OnePersonEach:
    """What lies on the network: whose references each image looks at.

    Args:
        fusion: On the network.
        keys: Of the people, in the order of the identities.
        guide_away: Whether guidance leads away from what the network makes without references.
    """

    compiles = False  # a recorded graph would go on looking at the first batch's people
    condition = None

    def __init__(self, fusion: FaceFusion, keys: Keys, guide_away: bool) -> None:
        self.fusion, self.keys, self.guide_away = fusion, keys, guide_away

    def activate(self, rows: Sequence[int] | None, length: int = 1, guided: bool = False) -> None:
        """See ``sampler.OnNetwork``."""
        keys = next(iter(self.keys.values()))[0]
        who = torch.arange(len(keys)) if rows is None else torch.tensor(list(rows))
        self._look(Look(self.keys), who, length, guided)

    def _look(self, look: Look, who: Tensor, length: int, guided: bool) -> None:
        """Let groups of a batch look at the keys' people ``who`` int64 [groups]."""
        device = next(iter(look.keys.values()))[0].device
        whom = who[:, None].expand(-1, length * (1 + guided))
        looks = torch.ones_like(whom, dtype=torch.bool)
        if guided and self.guide_away:
            looks[:, :length] = False
        places = looks.flatten().nonzero()[:, 0]
        whose = whom.flatten()[places].to(device)
        self.fusion.look(replace(look, rows=places.to(device), whom=whose))


class Together(OnePersonEach):
    """All images look at all people, each where their mask is (Eq. 6, 7).

    Args:
        each: What lies on the network.
        masks: As of ``face_fusion.together``; None: a morph.
    """

    def __init__(self, each: OnePersonEach, masks: Tensor | None) -> None:
        super().__init__(each.fusion, each.keys, each.guide_away)
        people = range(len(next(iter(each.keys.values()))[0]))
        of_each = [
            {name: (key[k : k + 1], value[k : k + 1]) for name, (key, value) in each.keys.items()}
            for k in people
        ]
        device = next(iter(each.keys.values()))[0].device
        self._all = together(of_each, None if masks is None else masks.to(device))

    def activate(self, rows: Sequence[int] | None, length: int = 1, guided: bool = False) -> None:
        """See ``sampler.OnNetwork``; whoever a group is of, it shows everybody."""
        groups = 1 if rows is None else len(rows)
        self._look(self._all, torch.zeros(groups, dtype=torch.int64), length, guided)


def masks_of(places: Sequence[str], height: int, width: int) -> Tensor:
    """Where each person's face is, float [people, height, width], above zero inside.

    Args:
        places: Of each: left, right, or a PNG file that is brighter than half there.

    Raises:
        StepError: a file is missing or broken, of another size, or dark all over.
    """
    masks = torch.zeros(len(places), height, width)
    for mask, place in zip(masks, places, strict=True):
        if place in HALVES:
            half = width // 2
            mask[:, slice(half) if place == HALVES[0] else slice(half, None)] = 1
            continue
        try:
            image = read_image(Path(place))
        except (BadImage, OSError) as error:
            raise StepError(f"mask {place}: {error}; or write left or right") from error
        if image.shape[:2] != (height, width):
            raise StepError(
                f"mask {place} has {image.shape[1]}x{image.shape[0]} pixels, the images have "
                f"{width}x{height}: draw it in their size"
            )
        mask += torch.from_numpy(image.mean(axis=2) > 127.5)
        if not mask.any():
            raise StepError(f"mask {place} is dark all over: paint white where the face is")
    return masks
