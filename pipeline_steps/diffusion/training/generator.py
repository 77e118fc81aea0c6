"""Training of Face Fusion's W_kf and W_vf on images in the wild, once for a base model.

An image is denoised while the network looks at references of the person whom it shows: other images
of that person where there are any, else the image itself, augmented so that copying pixels does not
pay. References are clean (t = 0) and read under the empty prompt, as in sampling. Step s sees the
same draws whatever ran before it, so an interruption changes no result.

Without a reference the frozen network would be trained on nothing, so references are never dropped;
captions sometimes are, for guidance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.face_fusion import FaceFusion, Look
from pipeline_steps.diffusion.objectives import (
    add_noise,
    noise_prediction_loss,
    prediction_target,
)
from pipeline_steps.diffusion.training.fleet import learning_rate
from pipeline_steps.identities.containers import Entry, contents_of
from pipeline_steps.identities.photographs import IMAGE_SUFFIXES
from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.io.hashes import sha256_bytes, sha256_json
from pipeline_steps.io.images import read_image
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.settings.diffusion import GeneratorSettings

LINES = 20  # of the log
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Pictures:
    """Images in the wild.

    Attributes:
        images: Entries of the source, in natural order.
        captions: What each shows.
        others: Places of the other images of the same person; of itself where there are none.
    """

    images: tuple[Entry, ...]
    captions: tuple[str, ...]
    others: tuple[tuple[int, ...], ...]

    def sha256(self) -> str:
        """Hash of names, images and captions."""
        content = [(of.path, sha256_bytes(of.read())) for of in self.images]
        return sha256_json([content, self.captions])


def list_pictures(source: Path, template: str) -> Pictures:
    """Images of a folder, a zip, or a folder of tar shards (WebDataset).

    Images of one folder, in an archive or outside, show one person; those at the top of the source
    or of a shard are each somebody else's. A caption is the text file of the image's name, else the
    template.

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
    )


class Training:
    """W_kf and W_vf in training, on a base model's network.

    Args:
        base: Frozen base model; changed in place.
        pictures: What is trained on.
        settings: How.
        seed: The study seed.

    Attributes:
        step_number: Steps done.
        losses: One value per step.
    """

    def __init__(
        self, base: BaseModel, pictures: Pictures, settings: GeneratorSettings, seed: int
    ) -> None:
        self.base, self.pictures, self.settings, self.seed = base, pictures, settings, seed
        self.fusion = FaceFusion(base.unet)
        self.fusion.initialise(torch_generator(seed, "train_generator", base.name, "weights"))
        self.losses: list[float] = []
        self._optimiser = torch.optim.AdamW(
            self.fusion.parameters(),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=base.device.type == "cuda",
        )

    @property
    def step_number(self) -> int:
        return len(self.losses)

    def step(self) -> None:
        """One optimiser step."""
        settings, step = self.settings, self.step_number
        rate = learning_rate(settings.learning_rate, settings.schedule, step, settings.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, settings.warm_up))
        stream = torch_generator(self.seed, "train_generator", self.base.name, step)
        at = torch.randint(len(self.pictures.images), (settings.batch_size,), generator=stream)
        loss = self.loss(at.tolist(), stream)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.fusion.parameters(), settings.clip_norm)
        self._optimiser.step()
        self.losses.append(float(loss.detach()))

    def loss(self, at: Sequence[int], stream: torch.Generator) -> Tensor:
        """Weighted noise prediction error on images, a scalar.

        Args:
            at: Places of the images.
            stream: CPU generator of all draws.
        """
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
            snr = abar / (1 - abar)
            weights = snr.clamp(max=settings.snr_cap) / snr
        return (weights.to(output.dtype) * noise_prediction_loss(output, target)).mean()

    def state(self) -> dict[str, Tensor]:
        """Everything that the steps to come follow from."""
        state = {f"weights/{name}": tensor for name, tensor in self.fusion.state().items()}
        for name, p in self._named().items():
            for moment in MOMENTS if self.losses else ():
                state[f"{moment}/{name}"] = self._optimiser.state[p][moment]
        return state | {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.losses = state["losses"].tolist()
        where = self.base.device if self.base.device.type == "cuda" else "cpu"
        self.fusion.load({name: state[f"weights/{name}"] for name in self.fusion.state()})
        for name, p in self._named().items() if self.losses else ():
            self._optimiser.state[p] = {
                "step": torch.tensor(float(self.step_number), device=where),
                **{of: state[f"{of}/{name}"].to(p, copy=True) for of in MOMENTS},
            }

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(zip(self.fusion.state(), self.fusion.parameters(), strict=True))

    def _references(self, place: int, count: int, rng: np.random.Generator) -> list[Image.Image]:
        """So many references of an image, in turn where there are fewer."""
        others = self.pictures.others[place]
        order = rng.permutation(len(others))
        chosen = [others[order[k % len(order)]] for k in range(count)]
        images = [self._read(other) for other in chosen]
        return [augmented(image, rng) if others == (place,) else image for image in images]

    def _read(self, place: int) -> Image.Image:
        entry, side = self.pictures.images[place], self.base.resolution
        image = Image.fromarray(read_image(entry.read()))
        return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)

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


def train(training: Training, saved: Checkpoint, save_seconds: float, stop: StopRequest) -> None:
    """Train from where the saved state is to the last step.

    Raises:
        Interrupted: somebody asked to stop; the state is saved.
        StepError: the loss is no number.
    """
    log, steps = get_logger("train_generator"), training.settings.steps
    if (found := saved.load()) is not None:
        training.load_state(found[0])
        log.info("going on from step %d", training.step_number)
    saved_at = time.monotonic()
    for _ in range(training.step_number, steps):
        training.step()
        done = training.step_number
        if not math.isfinite(training.losses[-1]):
            raise StepError(
                f"training diverged at step {done}: lower train_generator.learning_rate"
            )
        if done % max(1, steps // LINES) == 0 or done == steps:
            recent = training.losses[-max(1, steps // LINES) :]
            log.info("step %d/%d loss %.4f", done, steps, sum(recent) / len(recent))
        if time.monotonic() - saved_at >= save_seconds or stop or done == steps:
            saved.save(training.state())
            saved_at = time.monotonic()
        if stop and done < steps:
            raise Interrupted(f"{stop.name}: saved at step {done} of {steps}; run again to go on")
