"""Training of Face Fusion's W_kf and W_vf on images in the wild, once for a base model.

An image is denoised while the network looks at references of the person whom it shows: other images
of that person where there are any, else the image itself, augmented so that copying pixels does not
pay. References are clean (t = 0) and read under the empty prompt, as in sampling. Step s sees the
same draws whatever ran before it, so an interruption changes no result.

Without a reference the frozen network would be trained on nothing, so references are never dropped;
captions sometimes are, for guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion, Look
from pipeline_steps.diffusion.objectives import (
    add_noise,
    min_snr_weight,
    noise_prediction_loss,
    prediction_target,
)
from pipeline_steps.diffusion.training.weights import PURPOSE, Terms, WeightsTraining
from pipeline_steps.identities.containers import Entry, contents_of
from pipeline_steps.identities.photographs import IMAGE_SUFFIXES
from pipeline_steps.io.hashes import sha256_bytes, sha256_json
from pipeline_steps.io.images import read_image
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings


@dataclass(frozen=True)
class Pictures:
    """Images in the wild.

    Attributes:
        images: Entries of the source, in natural order.
        captions: What each shows.
        others: Places of the other images of the same person; of itself where there are none.
        facts: What is told of each beside it, as JSON; None: nothing.
    """

    images: tuple[Entry, ...]
    captions: tuple[str, ...]
    others: tuple[tuple[int, ...], ...]
    facts: tuple[Entry | None, ...] = ()

    def sha256(self) -> str:
        """Hash of names, images, captions and facts."""
        content = [(of.path, sha256_bytes(of.read())) for of in self.images]
        told = [None if of is None else sha256_bytes(of.read()) for of in self.facts]
        return sha256_json([content, self.captions, told])

    def read(self, place: int, side: int) -> Image.Image:
        """An image, cut to a square of so many pixels."""
        image = Image.fromarray(read_image(self.images[place].read()))
        return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def list_pictures(source: Path, template: str) -> Pictures:
    """Images of a folder, a zip, or a folder of tar shards (WebDataset).

    Images of one folder, in an archive or outside, show one person; those at the top of the source
    or of a shard are each somebody else's. A caption is the text file of the image's name, else the
    template; what is told of it beside that, the JSON file of its name.

    Raises:
        StepError: there is no image.
    """
    if not source.exists():
        raise StepError(f"training images {source} do not exist: correct train_generator.images")
    entries = sorted(contents_of(source).entries, key=lambda entry: natural_key(entry.path))
    files = {PurePosixPath(entry.path): entry for entry in entries if not entry.is_folder}
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise StepError(f"training images {source} hold no image: correct train_generator.images")
    of_person: dict[PurePosixPath, list[int]] = {}
    for place, path in enumerate(images):
        top = str(path.parent) == (files[path].shard or ".")
        of_person.setdefault(path if top else path.parent, []).append(place)
    others = {
        place: tuple(other for other in own if other != place) or (place,)
        for own in of_person.values()
        for place in own
    }
    texts = [files.get(path.with_suffix(".txt")) for path in images]
    return Pictures(
        tuple(files[path] for path in images),
        tuple(template if of is None else of.read().decode().strip() for of in texts),
        tuple(others[place] for place in range(len(images))),
        tuple(files.get(path.with_suffix(".json")) for path in images),
    )


class Training(WeightsTraining):
    """W_kf and W_vf in training, on a base model's network, which is changed in place."""

    file_name = FILE_NAME

    def __init__(
        self, base: BaseModel, pictures: Pictures, frozen: Frozen[GeneratorSettings], *_: object
    ) -> None:
        self.pictures, self.fusion = pictures, FaceFusion(base.unet)
        self.fusion.initialise(torch_generator(frozen.seed, *PURPOSE, base.name, "weights"))
        trained = dict(zip(self.fusion.state(), self.fusion.parameters(), strict=True))
        super().__init__(base, frozen, trained, len(pictures.images))

    def loss(self, at: Sequence[int], stream: torch.Generator) -> tuple[Tensor, Terms]:
        """Weighted noise prediction error."""
        settings, base, n = self.settings, self.base, len(at)
        count = 1 + int(torch.randint(settings.references, (), generator=stream))
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=stream)))
        chosen = [self._references(place, count, rng) for place in at]
        told = torch.rand(n, generator=stream) >= settings.drop_text
        timesteps = torch.randint(base.train_timesteps, (n,), generator=stream)
        draws = torch.randn(2, n, *base.latent_shape, generator=stream).to(base.device)
        pixels = [self._read(place) for place in at]
        mean, std = self._encode(pixels)
        clean = mean + std * draws[0]
        timesteps = timesteps.to(base.device)
        abar = base.alphas_cumprod[timesteps]
        noisy = add_noise(clean, draws[1], abar)
        captions = [self.pictures.captions[place] for place in at]
        texts = [text if kept else None for text, kept in zip(captions, told, strict=True)]
        condition = base.encode_prompts(texts)
        references, _ = self._encode([image for own in chosen for image in own])
        hidden = self.fusion.read(base, references)
        by_image = {name: states.unflatten(0, (n, count)) for name, states in hidden.items()}
        self.fusion.look(Look(self.fusion.keys(by_image)))
        output = base.predict(noisy, timesteps, condition)
        target = prediction_target(clean, draws[1], abar, base.prediction_type)
        weights = torch.ones_like(abar)
        if settings.snr_cap is not None:
            weights = min_snr_weight(abar, settings.snr_cap, base.prediction_type)
        errors = noise_prediction_loss(output, target)
        return (weights.to(output.dtype) * errors).mean(), {"noise": errors.detach().mean()}

    def _references(self, place: int, count: int, rng: np.random.Generator) -> list[Image.Image]:
        """So many references of an image, in turn where there are fewer."""
        others = self.pictures.others[place]
        order = rng.permutation(len(others))
        chosen = [others[order[k % len(order)]] for k in range(count)]
        images = [self._read(other) for other in chosen]
        return [augmented(image, rng) if others == (place,) else image for image in images]

    def _read(self, place: int) -> Image.Image:
        return self.pictures.read(place, self.base.resolution)

    def _encode(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        return self.base.encode_images(to_signed(pixels.permute(0, 3, 1, 2)).to(self.base.device))


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square image, mirrored or not, cut to between 0.8 and 1 of its side, in other colours."""
    side = image.size[0]
    cut = round(side * rng.uniform(0.8, 1.0))
    left, top = (int(rng.integers(side - cut + 1)) for _ in range(2))
    box = (left, top, left + cut, top + cut)
    image = image.resize((side, side), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(0.8, 1.2))
    return image
