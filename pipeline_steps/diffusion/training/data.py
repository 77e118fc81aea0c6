"""What a fleet is trained on: images, encoded once before the first step, and each step's noise.

There is no running stream of random numbers: step s of an identity sees the same ones whatever ran
before it or beside it, so neither a fleet's composition nor an interruption changes a result. The
method is no part of their key either: all methods see the same images, noise and timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.guide import Guide, load_guide
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.identities.dataset import Subject, embeddings_file, read_embeddings
from pipeline_steps.io.images import BadImage, noted_bytes, read_image, resized
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.seeds import numpy_generator, torch_generator
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings


@dataclass(frozen=True)
class Recipe:
    """How identities are trained, whoever they are.

    Attributes:
        method: A key of ``methods.METHODS``.
        settings: Resolved for the base model and the method.
        seed: The study seed.
    """

    method: str
    settings: FinetuneSettings
    seed: int


@dataclass(frozen=True)
class LatentSet:
    """Images in the autoencoder's latent space.

    Attributes:
        mean: Posterior mean in the denoising network's scale, float [n, c, h, w].
        std: Posterior standard deviation, the same shape.
        embeddings: Face embeddings, float [n, d] on the CPU, NaN for an image without a face; None
            where the method needs none.
        prompt: The one prompt of all images.
    """

    mean: Tensor
    std: Tensor
    embeddings: Tensor | None
    prompt: str

    def __len__(self) -> int:
        return len(self.mean)


@dataclass
class TrainingData:
    """What some identities are trained on.

    Attributes:
        base: The base model, in the precision of the training.
        guide: Detector and recogniser; None where nothing looks at faces.
        prior: The prior preservation images.
        images: Identity to its images.
        subjects: Identity to its subject, whose files are those that are trained on.
        held_out: Identity to the files that are not, and their embeddings, float32 [m, d].
        failures: Identity to the reason why it cannot be trained.
    """

    base: BaseModel
    guide: Guide | None
    prior: LatentSet
    images: dict[str, LatentSet] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    held_out: dict[str, tuple[tuple[str, ...], Tensor]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def load_training(
    frozen: Frozen[FinetuneSettings],
    subjects: Sequence[Subject],
    *,
    dataset: Path,
    prior: Path,
    device: str,
    guide: Guide | None,
    stop: StopRequest,
) -> TrainingData:
    """Load networks and encode images; an identity whose images cannot be read is a failure.

    Arguments are those of the finetune step; ``stop`` says whether somebody asked it to stop.

    Raises:
        StepError: weights or the prior set are missing or unfit.
        Interrupted: somebody asked to stop.
    """
    settings, method = frozen.settings, METHODS[frozen.variant["method"]]
    # Images are encoded in full precision; what follows may be narrower.
    base = load_base_model(frozen.weights["base_model"], device)
    if guide is None and method.needs_faces(settings):
        guide = load_guide(frozen.weights["recogniser"], device, settings.min_face_size or 20)
    how = embedded_by(frozen.weights["recogniser"]) if method.identity_term is not None else None
    data = TrainingData(base, guide, prior_latents(base, prior, how))
    for subject in subjects:
        if stop:
            raise Interrupted(f"{stop.name}: no training had begun; run again")
        try:
            _encode_subject(data, frozen, subject, dataset)
        except (StepError, BadImage) as error:
            data.failures[subject.identity] = str(error)
    base.to(device, settings.precision)
    return data


def _encode_subject(
    data: TrainingData, frozen: Frozen[FinetuneSettings], subject: Subject, dataset: Path
) -> None:
    """Add one identity to the data, without the images that are held out to choose a step."""
    settings, identity = frozen.settings, subject.identity
    embeddings, trained = None, np.ones(len(subject.files), dtype=bool)
    if METHODS[frozen.variant["method"]].needs_faces(settings):
        path = embeddings_file(dataset, subject, data.base.resolution)
        embeddings = read_embeddings(path, subject.files, embedded_by(frozen.weights["recogniser"]))
    if settings.choice is not None and embeddings is not None:
        count = settings.choice.held_out
        trained = ~hold_out(embeddings, count, seed=frozen.seed, identity=identity)
        held_out = tuple(compress(subject.files, ~trained))
        data.held_out[identity] = held_out, torch.from_numpy(embeddings[~trained])
        embeddings = embeddings[trained]
    files, digests = compress(subject.files, trained), compress(subject.sha256, trained)
    chosen = replace(subject, files=tuple(files), sha256=tuple(digests))
    noted = {
        dataset / file: digest for file, digest in zip(chosen.files, chosen.sha256, strict=True)
    }
    prompt = settings.instance_prompt_for(subject.gender)
    data.images[identity] = encode_files(data.base, noted, "prepare", prompt, embeddings)
    data.subjects[identity] = chosen


def hold_out(
    embeddings: NDArray[np.float32], count: int, *, seed: int, identity: str
) -> NDArray[np.bool_]:
    """Draw the images of an identity that are not trained on: bool [n], True for ``count``.

    Args:
        embeddings: float32 [n, d] of its images; NaN for one without a face, never held out.

    Raises:
        StepError: there are too few images.
    """
    faces = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    if len(faces) < count or len(embeddings) <= count:
        raise StepError(
            f"{len(embeddings)} images, {len(faces)} of them with a face, are too few to hold out "
            f"{count}: lower finetune.choice.held_out"
        )
    held = np.zeros(len(embeddings), dtype=bool)
    held[numpy_generator(seed, "choice", "held out", identity).permutation(faces)[:count]] = True
    return held


def prior_latents(base: BaseModel, prior: Path, how: Mapping[str, str] | None = None) -> LatentSet:
    """The prior set, encoded by a base model whose autoencoder is in float32.

    Args:
        base: The base model.
        prior: Folder with manifest.parquet, images/ and embeddings.safetensors.
        how: The network of its embeddings, see ``weights.made_by``; None: none are needed.

    Raises:
        StepError: a file is missing or broken, the images have more than one prompt, or another
            network made the embeddings.
    """
    manifest = read_manifest(prior / "manifest.parquet", ["file", "sha256", "prompt", "kept"])
    kept = manifest[manifest["kept"].astype(bool)]
    prompts = sorted(set(kept["prompt"]))
    if len(prompts) != 1:
        raise StepError(f"the prior set {prior} has {len(prompts)} prompts; one is expected")
    files = list(kept["file"])
    path = prior / "embeddings.safetensors"
    embeddings = None if how is None else read_embeddings(path, files, how)
    if embeddings is not None and not np.isfinite(embeddings).all():
        raise StepError(f"{path} does not fit the manifest beside it: run prior again")
    noted = {prior / file: digest for file, digest in zip(files, kept["sha256"], strict=True)}
    try:
        return encode_files(base, noted, "prior", prompts[0], embeddings)
    except BadImage as error:
        raise StepError(f"prior set {prior}: {error}; delete it and run prior again") from error


def encode_files(
    base: BaseModel,
    noted: Mapping[Path, str],
    step: str,
    prompt: str,
    embeddings: NDArray[np.float32] | None,
) -> LatentSet:
    """Latents of square image files, resized to the base model's resolution where they differ.

    Args:
        base: Base model with its autoencoder in float32.
        noted: The files with the hashes that their manifest notes.
        step: The step that made them.
        prompt: The one prompt of all of them.
        embeddings: float32 [n, d], row by row those of the files; NaN for none.

    Raises:
        StepError: a file is missing or not the noted one, or its latents are not finite.
        BadImage: an image is broken or not square.
    """
    pixels = [
        _square(file, noted_bytes(file, digest, step), base.resolution)
        for file, digest in noted.items()
    ]
    mean, std = base.encode_images(
        to_signed(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    )
    broken = ~torch.stack([mean, std]).isfinite().flatten(2).all(dim=2).all(dim=0)
    for file in compress(noted, broken.tolist()):
        raise StepError(
            f"the autoencoder of base model {base.name!r} gives no finite latents for {file}: its "
            "weights are broken; fetch them again, or name another vae in config/models.yaml"
        )
    rows = None if embeddings is None else torch.tensor(embeddings)
    return LatentSet(mean.cpu(), std.cpu(), rows, prompt)


def _square(file: Path, content: bytes, side: int) -> NDArray[np.uint8]:
    image = read_image(content)
    height, width = image.shape[:2]
    if height != width:
        raise BadImage("not square", f"{file} {width}x{height}")
    return resized(image, side)


@dataclass(frozen=True)
class StepNoise:
    """What one step of one identity needs, or of many, stacked along a new first axis.

    Of the 2b samples the first b are instance images and the others prior images.

    Attributes:
        instance: Instance images, int64 [b].
        prior: Prior images, int64 [b].
        posterior: Noise of the autoencoder's posterior, float32 [2b, c, h, w].
        noise: Noise of the diffusion, float32 [2b, c, h, w].
        timesteps: int64 [2b], uniform in [0, T).
    """

    instance: Tensor
    prior: Tensor
    posterior: Tensor
    noise: Tensor
    timesteps: Tensor


def step_noise(
    seed: int,
    base_model: str,
    identity: str,
    step: int,
    *,
    n_instance: int,
    n_prior: int,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    train_timesteps: int,
) -> StepNoise:
    """Draw one step of one identity.

    Images go in epochs: an epoch is a shuffled pass over max(n_instance, n_prior) pairs, pair i
    being instance image i mod n_instance and prior image i mod n_prior.
    """
    length = max(n_instance, n_prior)
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = [_epoch(seed, base_model, identity, place // length, length) for place in places]
    pairs = torch.stack([epoch[p % length] for epoch, p in zip(epochs, places, strict=True)])
    generator = torch_generator(seed, "finetune", base_model, identity, step)
    shape = (2 * batch_size, *latent_shape)
    return StepNoise(
        instance=pairs % n_instance,
        prior=pairs % n_prior,
        posterior=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.randint(train_timesteps, (2 * batch_size,), generator=generator),
    )


def stack(steps: list[StepNoise]) -> StepNoise:
    """That of K identities with a first axis of length K."""
    names = [field.name for field in fields(StepNoise)]
    return StepNoise(**{n: torch.stack([getattr(step, n) for step in steps]) for n in names})


def _epoch(seed: int, base_model: str, identity: str, epoch: int, length: int) -> Tensor:
    generator = torch_generator(seed, "finetune", base_model, identity, "epoch", epoch)
    return torch.randperm(length, generator=generator)
