"""Training of ID3's network for the embedded world, with the renderer's truth as attributes.

y is the embedding of any of a person's photographs, so that it says nothing of the pose and the age
of the one that is painted; the paper has one photograph of each person and takes its own. Only the
denoiser's attention is trained, from the base model's weights, which keeps the file small; the
paper trains all of it from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.demo_world.pretraining.autoencoder import to_batch
from pipeline_steps.demo_world.pretraining.denoiser import SNR_CAP
from pipeline_steps.demo_world.pretraining.face_fusion import boxes, embeddings
from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.guide import frozen_copy
from pipeline_steps.diffusion.id3 import ATTRIBUTES, TRAINED, TRAINED_ON, Id3
from pipeline_steps.diffusion.objectives import add_noise, noise_prediction_loss, predict_x0
from pipeline_steps.diffusion.training.id3 import MOST_FACTS, Batch, Objective
from pipeline_steps.faces.detection import crop_and_resize
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.seeds import numpy_generator

COLUMNS = ("pictures", "landmarks", *ATTRIBUTES)
CHUNK = 64  # images per pass without gradients
UNSEEN_TIMES = (500, 700, 900)  # at which unseen people are estimated
OBJECTIVE = Objective(
    reconstruction=0.0, likeness=1.0, looked_at=3, snr_cap=SNR_CAP, nearest=0.7, drop=0.1
)


@dataclass(frozen=True)
class Known:
    """Photographs of people, so many of each, who stand one behind the other.

    Attributes:
        each: photographs of each person.
        mean, std: of the autoencoder's posterior, [n, c, h, w].
        attributes: s, [n, 4].
        boxes: of the faces, pixels, [n, 4].
        embeddings: of every photograph by each judge, [n, d].
    """

    each: int
    mean: Tensor
    std: Tensor
    attributes: Tensor
    boxes: Tensor
    embeddings: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        columns: Mapping[str, np.ndarray],
        each: int,
        base: BaseModel,
        judges: Sequence[Recogniser],
        device: str,
    ) -> Known:
        """People of rendered photographs with the columns COLUMNS."""
        x = to_batch(torch.from_numpy(columns["pictures"])).to(device)
        found = boxes(torch.from_numpy(columns["landmarks"]).to(device), x.shape[-1])
        own = [embeddings(judge, x, found) for judge in judges]
        s = attributes(columns).to(device)
        return cls(each, *base.encode_images(x, CHUNK), s, found, own)


def stage(
    base: BaseModel,
    judges: Sequence[Recogniser],
    weights: Mapping[str, Tensor],
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    each: tuple[int, int],
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training of a network on a base model.

    Args:
        base: on the device, in single precision.
        judges: recognisers; the first one makes y and is followed, all measure.
        weights: where the network begins, as Id3 reads them.
        columns: COLUMNS of photographs, so many of each person one behind the other.
        unseen: the same of people on whom it is measured.
        run: device and precision.
        each: photographs of each person in both.
        seed: of all draws.
        amounts: length, batch and learning rate.
    """
    seen, others = (
        Known.of(facts, count, base, judges, run.device)
        for facts, count in zip((columns, unseen), each, strict=True)
    )
    known = Id3.of(base.unet, weights)
    network = Id3(known.unet, known.condition.requires_grad_(True), "attention")
    guide = frozen_copy(judges[0].network)

    def loss(count: int, generator: torch.Generator) -> Tensor:
        batch = drawn(base, seen, count, generator)

        def embed(images: Tensor, places: Tensor) -> Tensor:
            return guide(crop_and_resize(images, places, judges[0].input_size))

        with run.autocast():
            return OBJECTIVE.of(base, network, embed, batch, generator)[0]

    return Stage(
        name="id3",
        seed=seed,
        networks=network,
        loss=loss,
        measure=lambda average: likeness(base, average, judges, others, run),
        amounts=amounts,
        warm_up=1_600,
        hold=24_000,
    )


def drawn(base: BaseModel, people: Known, count: int, generator: torch.Generator) -> Batch:
    """A batch: photographs, their noise, and an embedding of any photograph of the same person."""
    device = people.mean.device

    def draw(below: int) -> Tensor:
        return torch.randint(below, (count,), generator=generator, device=device)

    at, t = draw(len(people.mean)), draw(base.train_timesteps)
    of = at // people.each * people.each + draw(people.each)
    noise = torch.randn((2, count, *base.latent_shape), generator=generator, device=device)
    clean = people.mean[at] + people.std[at] * noise[0]
    y, s, box = people.embeddings[0][of], people.attributes[at], people.boxes[at]
    return Batch(clean, noise[1], t, y, s, box)


def weights_of(average: nn.Module, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """What the study reads: what was trained, in half precision, and photographs' attributes."""
    trained = {
        name: tensor.half()
        for name, tensor in average.state_dict().items()
        if name.startswith("condition.") or TRAINED["attention"] in name
    }
    facts = attributes(columns)
    chosen = numpy_generator(0, "id3", "facts").permutation(len(facts))[:MOST_FACTS]
    return trained | {TRAINED_ON: facts[torch.from_numpy(chosen)].half()}


def attributes(columns: Mapping[str, np.ndarray]) -> Tensor:
    """s of rendered photographs, [n, 4]; the renderer's ages are in [0, 1]."""
    facts = [columns[name] * (100 if name == "age" else 1) for name in ATTRIBUTES]
    return torch.from_numpy(np.stack(facts, axis=1)).float()


@torch.no_grad()
def likeness(
    base: BaseModel, average: nn.Module, judges: Sequence[Recogniser], people: Known, run: Run
) -> dict[str, float]:
    """How well estimates from noised images of unseen people show them.

    Returns:
        `unseen`, the error of the noise; `like_0`, `like_1`, the mean cosine of the estimates to
        the person's other photographs by each judge.
    """
    network: Any = average
    n, each = len(people.mean), people.each
    at = torch.arange(n, device=run.device)
    other = at // each * each + (at + 1) % each
    draw = torch.Generator(run.device).manual_seed(0)
    noise = torch.randn(people.mean.shape, generator=draw, device=run.device)
    errors: list[Tensor] = []
    cosines: list[list[Tensor]] = [[] for _ in judges]
    for rows in at.split(CHUNK):
        y, s = people.embeddings[0][other[rows]], people.attributes[rows]
        for time in UNSEEN_TIMES:
            t = torch.full_like(rows, time)
            abar = base.alphas_cumprod[t]
            noisy = add_noise(people.mean[rows], noise[rows], abar)
            with run.autocast():
                output = base.predict(noisy, t, network.tell(base, y, s), network.unet).float()
                estimate = predict_x0(noisy, output, abar, base.prediction_type)
                image = base.decode(estimate).float().clamp(-1, 1)
            errors.append(noise_prediction_loss(output, noise[rows]))
            for judge, found, faces in zip(judges, cosines, people.embeddings, strict=True):
                face = judge.network(crop_and_resize(image, people.boxes[rows], judge.input_size))
                found.append(F.cosine_similarity(face, faces[other[rows]]))
    told = {f"like_{k}": float(torch.cat(found).mean()) for k, found in enumerate(cosines)}
    return {"unseen": float(torch.cat(errors).mean())} | told
