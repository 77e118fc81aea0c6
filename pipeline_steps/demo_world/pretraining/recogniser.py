"""Training of the embedded recognisers: small iResNets, one of them a guide with a quality head.

They go on from those that ship. People's class centres begin where those put them, so that faces
stay about where they were and what was trained with the recognisers still understands them.

Loss: CosFace (Wang et al., CVPR 2018) or ArcFace (Deng et al., CVPR 2019). Quality head: CR-FIQA
(Boutros et al., CVPR 2023): a sample's certainty ratio CCS / (NNCCS + 1 + eps), the cosine to its
own class centre over the cosine to the nearest other one, regressed by a smooth L1 loss.

The guide is what fine-tuning's identity losses follow, so it is also shown what fine-tuning may end
in: faces without eyes or features (`faceless`) have to lie far from everybody, and poor.

The recognisers judge samples of a 64-pixel diffusion model beside full-resolution renders, so they
see every resolution, blur, crop and noise (`degrade`), and little change of colour, for a person's
skin is part of who they are. One image in eight is spoiled (hidden, scrambled, drowned in noise, a
few pixels wide), so that the quality head learns what poor faces look like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.demo_world.pretraining.autoencoder import CHUNK, to_batch
from pipeline_steps.demo_world.pretraining.plan import Amounts, RecogniserPlan
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.metrics.verification import error_rates
from pipeline_steps.recognition.margins import MarginHead

EPSILON = 1e-9
SCALE = 32.0  # of the cosines
SMOOTH_L1_BETA = 0.5
FACELESS_SHARE = 0.25  # images without a face, beside a batch of faces
FAR = 0.1  # largest cosine of such an image to anybody
FAR_WEIGHT = 10.0
FAINT = 0.25  # of their contrast, what is left of wiped features at most


class Trainee(nn.Module):
    """A recogniser and, only while it is trained, people's class centres."""

    def __init__(self, plan: RecogniserPlan, network: IResNet, centres: Tensor) -> None:
        super().__init__()
        self.network = network.requires_grad_(True)
        people, dim = centres.shape
        self.head = MarginHead(dim, people, loss=plan.loss, scale=SCALE, margin=plan.margin)
        self.head.weight.data.copy_(centres)


@torch.no_grad()
def centres(network: IResNet, crops: Tensor, identity: Tensor, run: Run) -> Tensor:
    """Mean unit embedding of each person, float32 [people, d], of faces uint8 [n, 112, 112, 3]."""
    network.eval()
    with run.autocast():
        rows = [functional.normalize(network(to_batch(x)).float()) for x in crops.split(CHUNK)]
    sums = rows[0].new_zeros(int(identity.max()) + 1, rows[0].shape[1])
    return functional.normalize(sums.index_add_(0, identity, torch.cat(rows)))


def stage(
    plan: RecogniserPlan,
    network: IResNet,
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training of a recogniser from the network on; for the other arguments see
    `autoencoder.stage`; the columns are `crops` and `identity`.
    """
    crops, identity = (
        torch.from_numpy(columns[name]).to(run.device) for name in ("crops", "identity")
    )
    known = centres(network.to(run.device), crops, identity, run)
    model = Trainee(plan, network, known).to(run.device).train()

    def loss(count: int, generator: torch.Generator) -> Tensor:
        at = torch.randint(len(crops), (count,), generator=generator, device=run.device)
        faces = to_batch(crops[at])
        x = degrade(faces, generator)
        if plan.guides:
            x = torch.cat([x, faceless(faces[: int(FACELESS_SHARE * count)], generator)])
        with run.autocast():
            embeddings = model.network(x)
        return _loss(model, embeddings.float(), identity[at])

    return Stage(
        name=plan.name,
        seed=seed,
        networks=model,
        loss=loss,
        measure=lambda average: quality(cast(Trainee, average).network, unseen, run),
        amounts=amounts,
        warm_up=10_000,
        hold=100_000,
        decay=5e-2,
    )


def _loss(model: Trainee, embeddings: Tensor, own: Tensor) -> Tensor:
    """Margin loss of the first len(own) embeddings, and of a guide also the two further terms."""
    faces, count = embeddings[: len(own)], len(own)
    cosines = model.head.cosines(embeddings)
    norms = faces.detach().norm(dim=1)
    total = functional.cross_entropy(model.head.logits(cosines[:count], own, norms), own)
    if model.network.qs is None:
        return total
    ratio = torch.cat(
        [certainty_ratio(cosines[:count].detach(), own), cosines.new_zeros(len(cosines) - count)]
    )
    poor = functional.smooth_l1_loss(
        model.network.qs(embeddings).squeeze(1), ratio, beta=SMOOTH_L1_BETA
    )
    nearest = cosines[count:].amax(1)
    return total + poor + FAR_WEIGHT * functional.relu(nearest - FAR).mean()


def certainty_ratio(cosines: Tensor, labels: Tensor) -> Tensor:
    """CR-FIQA's target, Eq. 4: CCS / (NNCCS + 1 + eps).

    Args:
        cosines: [n, n_identities] to all class centres.
        labels: int64 [n].

    Returns:
        [n]; about 0 for a sample like no other of its class, up to 1 and beyond for a clear one.
    """
    own = labels.unsqueeze(1)
    nearest_other = cosines.scatter(1, own, -math.inf).amax(dim=1)
    return cosines.gather(1, own).squeeze(1) / (nearest_other + 1 + EPSILON)


@torch.no_grad()
def quality(network: IResNet, columns: Mapping[str, np.ndarray], run: Run) -> dict[str, float]:
    """How well a recogniser in evaluation mode tells unseen people apart.

    Returns:
        `eer` of all pairs; `faceless`, the mean cosine between faces and the same without features.
    """
    crops, identity = columns["crops"], columns["identity"]
    whole: list[Tensor] = []
    wiped: list[Tensor] = []
    for first in range(0, len(crops), CHUNK):
        x = to_batch(torch.from_numpy(crops[first : first + CHUNK]).to(run.device))
        generator = torch.Generator(run.device).manual_seed(first)
        with run.autocast():
            for found, images in ((whole, x), (wiped, faceless(x, generator))):
                found.append(functional.normalize(network(images).float()))
    a, b = torch.cat(whole), torch.cat(wiped)
    cosines = (a @ a.T).cpu().numpy()
    upper = np.triu(np.ones(cosines.shape, bool), 1)
    same = identity[:, None] == identity[None]
    rates = error_rates(cosines[same & upper], cosines[~same & upper])
    return {"eer": float(rates.eer), "faceless": float((a * b).sum(1).mean())}


# Degradation --------------------------------------------------------------------------------------

GROUPS = 8  # of a batch: one strength of degradation each; the first is spoiled
GAIN, TINT, BIAS = 0.12, 0.03, 0.06  # of colours, at most; bias in units of [-1, 1]
COARSE_NOISE = 0.3  # standard deviation of what a half-denoised image has left of it, at most
# Of an aligned crop's side: centre and half axes of the face's inside, and of the eyes' band.
FACE_ELLIPSE, EYE_ELLIPSE = (0.5, 0.62, 0.34, 0.36), (0.5, 0.44, 0.36, 0.13)


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror image, crop, resolution, blur, colour and noise of faces [n, 3, 112, 112] in
    [-1, 1]; shape and range stay. The generator is on their device.
    """
    order = torch.randperm(len(x), generator=generator, device=x.device)
    x = _shift_crops(x[order], generator)
    # One strength per group of images: the resolution has to be the same within one call.
    spoiled, *others = x.tensor_split(GROUPS)
    parts = [
        _half_denoised(_blur(_lower_resolution(part, 28, 84, generator), generator), generator)
        for part in others
    ]
    x = torch.cat([_spoil(spoiled, generator), *parts])[torch.argsort(order)]
    n = len(x)
    gain = 1 + _uniform((n, 1, 1, 1), GAIN, generator)
    tint = 1 + _uniform((n, 3, 1, 1), TINT, generator)
    bias = _uniform((n, 1, 1, 1), BIAS, generator)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    noise_level = 0.05 * (0.5 + _uniform((n, 1, 1, 1), 0.5, generator)).square()
    return ((x + 1) * gain * tint - 1 + bias + noise * noise_level).clamp_(-1, 1)


def _uniform(shape: tuple[int, ...], half_width: float, generator: torch.Generator) -> Tensor:
    device = generator.device
    return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * half_width


def _number(low: float, high: float, generator: torch.Generator) -> float:
    """One draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def _shift_crops(x: Tensor, generator: torch.Generator) -> Tensor:
    """What an imperfect alignment does: shift 4 px, scale 5 %, rotation 4 degrees at most; flip."""
    n = len(x)
    angle = _uniform((n,), math.radians(4), generator)
    scale = 1 + _uniform((n,), 0.05, generator)
    mirror = _uniform((n,), 1.0, generator).sign()
    shift = _uniform((n, 2), 4 / 56, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (mirror * cos, -mirror * sin, shift[:, 0]), (sin, cos, shift[:, 1])
    transform = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = functional.affine_grid(transform, [n, 3, *x.shape[2:]], align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _lower_resolution(x: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Shrink to a size in low ... high px and enlarge again, for two groups of three."""
    if _number(0, 1, generator) > 2 / 3:
        return x
    return _coarse(x, int(_number(low, high + 1, generator)))


def _coarse(x: Tensor, size: int) -> Tensor:
    """Shrink to `size` pixels and enlarge again."""
    small = functional.interpolate(x, size=(size, size), mode="area")
    return functional.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def _half_denoised(x: Tensor, generator: torch.Generator) -> Tensor:
    """Coarse noise over a face whose details are not there yet, for one group of four."""
    if _number(0, 1, generator) > 1 / 4:
        return x
    share = _number(0, 0.7, generator)
    soft = (1 - share) * x + share * _coarse(x, 20)
    noise = torch.randn((*x.shape[:2], 28, 28), generator=generator, device=x.device)
    coarse = functional.interpolate(noise, size=x.shape[2:], mode="bilinear", align_corners=False)
    return soft + _number(0, COARSE_NOISE, generator) * coarse


def faceless(x: Tensor, generator: torch.Generator) -> Tensor:
    """What is left of faces without features: a quarter of the images each has skin instead of all
    features, skin instead of eyes, a blur of a few pixels, or only a corner of the picture.

    Shape and range as in `degrade`.
    """
    blank, blind, blurred, corner = x.tensor_split(4)
    size = x.shape[-1]
    wide = int(_number(size // 5, size // 3, generator))
    return torch.cat(
        [
            _wiped(blank, FACE_ELLIPSE, generator),
            _wiped(blind, EYE_ELLIPSE, generator),
            _coarse(blurred, int(_number(3, 8, generator))),
            functional.interpolate(corner[..., :wide, :wide], size=(size, size), mode="bilinear"),
        ]
    )


def _wiped(
    x: Tensor, ellipse: tuple[float, float, float, float], generator: torch.Generator
) -> Tensor:
    """Images [n, 3, s, s] with their own blur inside a soft ellipse, or nearly so."""
    faint = 1 - FAINT * torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
    axis = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
    across, down = (axis - ellipse[0]) / ellipse[2], (axis - ellipse[1]) / ellipse[3]
    inside = torch.sigmoid(8 * (1 - across.square()[None] - down.square()[:, None]))
    return x + faint * inside * (_coarse(x, 5) - x)


def _spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade [n, 3, h, w] until recognition suffers, by one of four ways for the whole group."""
    if len(x) == 0:
        return x
    way = int(_number(0, 4, generator))
    height = x.shape[2]
    if way == 0:  # a few pixels
        return _coarse(x, int(_number(6, 21, generator)))
    if way == 1:  # noise
        level = 0.5 + _uniform((len(x), 1, 1, 1), 0.5, generator)
        return x + level * torch.randn(x.shape, generator=generator, device=x.device)
    if way == 2:  # a bar over a third to a half of the face
        rows = int(height * _number(1 / 3, 1 / 2, generator))
        top = int(_number(0, height - rows + 1, generator))
        hidden = x.clone()
        hidden[:, :, top : top + rows] = _uniform((len(x), 3, 1, 1), 1.0, generator)
        return hidden
    # tiles of a quarter of the side, some of them exchanged
    tiles = x.unflatten(2, (4, -1)).unflatten(4, (4, -1)).transpose(3, 4).flatten(2, 3)
    order = torch.arange(16, device=x.device)
    shuffled = torch.randperm(16, generator=generator, device=x.device)
    chosen = shuffled[: int(_number(4, 13, generator))]
    order[chosen] = chosen.roll(1)
    exchanged = tiles[:, :, order].unflatten(2, (4, 4)).transpose(3, 4)
    return exchanged.flatten(4, 5).flatten(2, 3)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur up to sigma 1.2 px, for one group of two."""
    if _number(0, 1, generator) < 0.5:
        return x
    sigma = _number(0.3, 1.2, generator)
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4, device=x.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 7)
    x = functional.conv2d(x, kernel.unsqueeze(2), padding=(0, 3), groups=3)
    return functional.conv2d(x, kernel.unsqueeze(3), padding=(3, 0), groups=3)
