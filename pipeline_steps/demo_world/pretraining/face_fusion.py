"""Training of Face Fusion's weights for the embedded world: a person from other photographs of him.

The objective is train_generator's (noise prediction while the network looks at clean references),
and beside it, inferred for this world and not the paper's, the likeness of the estimated clean
image to the person by the guiding recogniser, in the box that the renderer's own landmarks give.
What a step needs of an image is computed once: latents, captions' encodings, and the hidden states
that the frozen network has of it as a reference.

Captions name nobody: whom an image shows is for the references to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.demo_world.pretraining.autoencoder import to_batch
from pipeline_steps.demo_world.pretraining.captions import caption
from pipeline_steps.demo_world.pretraining.denoiser import CAPTION_FACTS, CAPTIONS_EACH, SNR_CAP
from pipeline_steps.demo_world.pretraining.images import BOX_DROP, BOX_HEIGHT, BOX_WIDTH
from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_fusion import FaceFusion, Hidden, Look
from pipeline_steps.diffusion.guide import frozen_copy
from pipeline_steps.diffusion.objectives import (
    add_noise,
    min_snr_weight,
    predict_x0,
    prediction_target,
)
from pipeline_steps.faces.detection import crop_and_resize
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.seeds import numpy_generator

COLUMNS = ("pictures", "landmarks", *CAPTION_FACTS)
IDENTITY_WEIGHT = 0.3
CHUNK = 64  # images per pass without gradients
UNSEEN_TIMES = (700, 900)  # at which unseen people are estimated


def boxes(landmarks: Tensor, side: int) -> Tensor:
    """About the boxes [n, 4] that a detector would find round landmarks [n, 5, 2], in pixels."""
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    drop = (mouth - eyes).norm(dim=1).clamp(min=0.08 * side)[:, None]
    half = drop * landmarks.new_tensor([BOX_WIDTH / 2, BOX_HEIGHT / 2])
    centre = torch.stack([(eyes[:, 0] + mouth[:, 0]) / 2, eyes[:, 1] + BOX_DROP * drop[:, 0]], 1)
    return torch.cat([centre - half, centre + half], 1).clamp(0, side)


def embeddings(judge: Recogniser, images: Tensor, found: Tensor) -> Tensor:
    """Embeddings of length 1 [n, d] of images [n, 3, h, w] in [-1, 1] with boxes [n, 4]."""
    rows = [
        F.normalize(judge.network(crop_and_resize(a, b, judge.input_size)))
        for a, b in zip(images.split(CHUNK), found.split(CHUNK), strict=True)
    ]
    return torch.cat(rows)


@dataclass(frozen=True)
class People:
    """Photographs of people, so many of each, as the frozen networks see them.

    Attributes:
        each: photographs of each person, who stand one behind the other.
        mean, std: of the autoencoder's posterior, [n, c, h, w], in the denoiser's scale.
        texts: encoded captions, [k, tokens, width].
        captions: places among them of CAPTIONS_EACH captions of each photograph, int64 [n, 16].
        boxes: of the faces, pixels, [n, 4].
        hidden: what the network makes of each as a reference, half precision.
        faces: mean unit embedding of each person by each judge, [people, d].
    """

    each: int
    mean: Tensor
    std: Tensor
    texts: Tensor
    captions: Tensor
    boxes: Tensor
    hidden: Hidden
    faces: list[Tensor]

    @classmethod
    def of(
        cls,
        columns: Mapping[str, np.ndarray],
        each: int,
        base: BaseModel,
        fusion: FaceFusion,
        judges: Sequence[Recogniser],
        run: Run,
        *,
        seed: int,
    ) -> People:
        """People of rendered photographs with the columns COLUMNS."""
        x = to_batch(torch.from_numpy(columns["pictures"])).to(run.device)
        found = boxes(torch.from_numpy(columns["landmarks"]).to(run.device), x.shape[-1])
        faces = []
        with torch.no_grad():
            mean, std = base.encode_images(x, CHUNK)
            parts = []
            for part in mean.split(CHUNK):
                with run.autocast():
                    parts.append({k: v.half() for k, v in fusion.read(base, part).items()})
            for judge in judges:
                rows = embeddings(judge, x, found)
                faces.append(F.normalize(rows.unflatten(0, (-1, each)).mean(1)))
        texts = captions_of(columns, seed)
        index = {text: k for k, text in enumerate(dict.fromkeys(texts))}
        places = torch.tensor([index[text] for text in texts], device=run.device)
        return cls(
            each,
            mean,
            std,
            base.encode_prompts(list(index)).hidden,
            places.unflatten(0, (-1, CAPTIONS_EACH)),
            found,
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            faces,
        )


def captions_of(columns: Mapping[str, np.ndarray], seed: int) -> list[str]:
    """CAPTIONS_EACH captions of each photograph, one behind the other, none with a name."""
    rng = numpy_generator(seed, "captions", "face_fusion")
    facts = [columns[name].tolist() for name in CAPTION_FACTS[1:]]
    return [
        caption(rng, name=None, male=bool(male), expression=expression, place=place, yaw=yaw)
        for male, expression, place, yaw in zip(*facts, strict=True)
        for _ in range(CAPTIONS_EACH)
    ]


def stage(
    base: BaseModel,
    judges: Sequence[Recogniser],
    weights: Mapping[str, Tensor],
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    each: Sequence[int],
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training of W_kf and W_vf on a base model, which is changed in place.

    Args:
        base: on the device, in single precision.
        judges: recognisers; the first one is followed, all measure.
        weights: where W_kf and W_vf begin, as FaceFusion has them.
        columns: COLUMNS of photographs, so many of each person one behind the other.
        unseen: the same of people on whom it is measured.
        run: device and precision.
        each: photographs of each person in both.
        seed: of all draws.
        amounts: length, batch and learning rate.
    """
    run = replace(run, bfloat16=run.bfloat16 and run.device != "cpu")  # slower there, measured
    fusion = FaceFusion(base.unet)
    fusion.load(weights)
    seen, others = (
        People.of(facts, count, base, fusion, judges, run, seed=seed)
        for facts, count in zip((columns, unseen), each, strict=True)
    )
    guide = frozen_copy(judges[0].network)

    def loss(count: int, generator: torch.Generator) -> Tensor:
        return loss_of(base, fusion, guide, seen, count, run, generator)

    def measure(average: nn.Module) -> dict[str, float]:
        mine = {name: tensor.clone() for name, tensor in fusion.state().items()}
        fusion.load(by_layer(average))
        try:
            return likeness(base, fusion, judges, others, run)
        finally:
            fusion.load(mine)

    # A module's name holds no dot.
    layers = {name.replace(".", "/"): layer for name, layer in fusion.layers.items()}
    return Stage(
        name="face_fusion",
        seed=seed,
        networks=nn.ModuleDict(layers),
        loss=loss,
        measure=measure,
        amounts=amounts,
        warm_up=600,
        hold=8_000,
    )


def by_layer(networks: nn.Module) -> dict[str, Tensor]:
    """The stage's weights by diffusers' names, as FaceFusion has them."""
    return {name.replace("/", "."): p.detach() for name, p in networks.state_dict().items()}


def loss_of(
    base: BaseModel,
    fusion: FaceFusion,
    guide: nn.Module,
    people: People,
    count: int,
    run: Run,
    generator: torch.Generator,
    *,
    look: Callable[[Tensor, Tensor, torch.Generator], Look] | None = None,
    identity_weight: float = IDENTITY_WEIGHT,
) -> Tensor:
    """Weighted noise prediction error and the estimates' unlikeness of a batch, a scalar.

    `look`: references int64 [count, n] and timesteps int64 [count] of the batch -> what its images
    look at; None: the references, clean.
    """

    def draw(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator, device=run.device)

    at, t = draw(len(people.mean), count), draw(base.train_timesteps, count)
    wanted = 1 + int(draw(people.each - 1))
    away = 1 + torch.rand((count, people.each - 1), generator=generator, device=run.device).argsort(
        1
    )
    who = at // people.each
    references = who[:, None] * people.each + (at[:, None] + away[:, :wanted]) % people.each
    noise = torch.randn((2, count, *base.latent_shape), generator=generator, device=run.device)
    clean = people.mean[at] + people.std[at] * noise[0]
    abar = base.alphas_cumprod[t]
    noisy = add_noise(clean, noise[1], abar)
    context = people.texts[people.captions[at, draw(CAPTIONS_EACH, count)]]
    with run.autocast():
        if look is None:
            keys = fusion.keys({k: h[references] for k, h in people.hidden.items()})
        fusion.look(Look(keys) if look is None else look(references, t, generator))
        output = base.unet(noisy, t, context, return_dict=False)[0].float()
    target = prediction_target(clean, noise[1], abar, base.prediction_type)
    error = (output - target).square().mean((1, 2, 3))
    total = (min_snr_weight(abar, SNR_CAP, base.prediction_type).float() * error).mean()
    if identity_weight == 0:
        return total
    some = slice(0, (count + 1) // 2)  # decoding costs as much as denoising
    estimate = predict_x0(noisy[some], output[some], abar[some], base.prediction_type)
    with run.autocast():
        image = base.decode(estimate).clamp(-1, 1)
        face = guide(crop_and_resize(image, people.boxes[at[some]]))
    unlike = 1 - F.cosine_similarity(face.float(), people.faces[0][who[some]])
    return total + identity_weight * unlike.mean()


@torch.no_grad()
def likeness(
    base: BaseModel, fusion: FaceFusion, judges: Sequence[Recogniser], people: People, run: Run
) -> dict[str, float]:
    """How well estimates from noised images of unseen people show them.

    Returns:
        `unseen`, the error of the noise; `like_0`, `like_1`, the mean cosine of the estimates to
        the person by each judge, when the network looks at all the other images.
    """
    at = torch.arange(0, len(people.mean), 2, device=run.device)
    away = torch.arange(1, people.each, device=run.device)
    references = (at // people.each * people.each)[:, None] + (at[:, None] + away) % people.each
    draw = torch.Generator(run.device).manual_seed(0)
    noise = torch.randn(people.mean.shape, generator=draw, device=run.device)
    errors: list[Tensor] = []
    cosines: list[list[Tensor]] = [[] for _ in judges]
    for rows, chosen in zip(at.split(CHUNK), references.split(CHUNK), strict=True):
        with run.autocast():
            keys = fusion.keys({k: h[chosen] for k, h in people.hidden.items()})
        for time in UNSEEN_TIMES:
            t = torch.full_like(rows, time)
            abar = base.alphas_cumprod[t]
            noisy = add_noise(people.mean[rows], noise[rows], abar)
            fusion.look(Look(keys))
            with run.autocast():
                context = people.texts[people.captions[rows, 0]]
                output = base.unet(noisy, t, context, return_dict=False)[0].float()
            target = prediction_target(people.mean[rows], noise[rows], abar, base.prediction_type)
            errors.append((output - target).square().mean())
            estimate = predict_x0(noisy, output, abar, base.prediction_type)
            with run.autocast():
                image = base.decode(estimate).float().clamp(-1, 1)
            for judge, found, faces in zip(judges, cosines, people.faces, strict=True):
                face = judge.network(crop_and_resize(image, people.boxes[rows], judge.input_size))
                found.append(F.cosine_similarity(face, faces[rows // people.each]))
    fusion.look(None)
    told = {f"like_{k}": float(torch.cat(found).mean()) for k, found in enumerate(cosines)}
    return {"unseen": float(torch.stack(errors).mean())} | told
