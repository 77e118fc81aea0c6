"""Pretraining of the embedded recogniser: a small iResNet with a face-quality head.

Loss: CosFace (Wang et al., CVPR 2018) with a margin that grows from zero, so that a small network
starts to learn at once. Quality head: CR-FIQA (Boutros et al., CVPR 2023): a sample's certainty
ratio CCS / (NNCCS + 1 + eps), the cosine to its own class centre over the cosine to the nearest
other one, regressed by a smooth L1 loss.

Training images are degraded at random (resolution, blur, crop, colour, noise), because the
recogniser judges samples of a 64-pixel diffusion model beside full-resolution renders. One in eight
is spoiled (hidden, scrambled, drowned in noise, a few pixels wide), so that the quality head sees
what poor faces look like.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.recognition.inference import to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.seeds import seed_for, torch_generator

EPSILON = 1e-9
WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
MARGIN_RISE = 0.4  # fraction of the steps in which the margin rises
CLIP_NORM = 5.0
GROUPS = 8  # of a batch: one strength of degradation each; the first is spoiled
# Of the others': embeddings of length sqrt(512) make larger steps of the quality head unstable.
QUALITY_LEARNING_RATE = 0.05
QUALITY_SAMPLES = 4096
QUALITY_RIDGE = 0.01
SMOOTH_L1_BETA = 0.5
HALF_PRECISION_MAX = 65504.0


def train_recogniser(
    images: np.ndarray,  # uint8 [n, 112, 112, 3], aligned, RGB
    labels: np.ndarray,  # int64 [n], 0 ... number of identities - 1
    *,
    layers: tuple[int, ...] = (1, 1, 1, 1),
    widths: tuple[int, ...] = (16, 16, 32, 64, 64),  # multiples of 16: CPU kernels come in 16s
    epochs: int = 6,
    batch_size: int = 128,
    learning_rate: float = 0.1,  # peak
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    scale: float = 32.0,
    margin: float = 0.35,  # final
    quality_weight: float = 1.0,
    seed: int,
    threads: int,
    with_quality_head: bool = True,
    bfloat16: bool = True,  # autocast; about 1.5 times as fast where the CPU has it
    compiled: bool = False,  # torch.compile: 1.7 times as fast after 30 s; needs a C++ compiler
    on_step: Callable[[int, int, float], None] = lambda step, n_steps, loss: None,
) -> IResNet:
    """Train on aligned faces.

    Args:
        on_step: called with the number of finished steps, of all steps, and the margin loss.

    Returns:
        the network in evaluation mode on the CPU; float16 can hold its state.

    Raises:
        ValueError: images and labels that do not fit.
        FloatingPointError: training diverged.
    """
    if images.shape[1:] != (112, 112, 3) or images.dtype != np.uint8 or len(images) != len(labels):
        raise ValueError(f"expected uint8 [n, 112, 112, 3] and n labels, got {images.shape}")
    torch.set_num_threads(threads)
    generator = torch_generator(seed, "recogniser", "order")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "recogniser", "weights"))
        network = IResNet(layers, widths, quality_head=with_quality_head)
        head = MarginHead(network.embedding_dim, int(labels.max()) + 1, scale=scale, margin=0.0)
    # Normalisation, slopes and biases are not decayed: it would only pull their scale.
    named = [*network.named_parameters(), *head.named_parameters()]
    trained = [(name.startswith("qs."), p) for name, p in named if p.requires_grad]
    groups = [
        ([p for qs, p in trained if not qs and p.ndim > 1], weight_decay, 1.0),
        ([p for qs, p in trained if not qs and p.ndim == 1], 0.0, 1.0),
        ([p for qs, p in trained if qs], weight_decay, QUALITY_LEARNING_RATE),
    ]
    optimiser = torch.optim.SGD(
        [{"params": p, "weight_decay": decay} for p, decay, _ in groups],
        lr=learning_rate,
        momentum=momentum,
        nesterov=True,
    )
    network.train()
    forward = torch.compile(network) if compiled else network
    batch_size = min(batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    n_steps = epochs * steps_per_epoch
    all_labels = torch.from_numpy(labels.astype(np.int64))
    for step in range(n_steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        start = step % steps_per_epoch * batch_size
        rows = order[start : start + batch_size]
        own = all_labels[rows]
        x = degrade(to_input(torch.from_numpy(images[rows.numpy()]), 112), generator)
        progress = step / n_steps
        head.margin = margin * min(1.0, progress / MARGIN_RISE)
        for group, (_, _, factor) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = learning_rate * factor * one_cycle(progress)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            embeddings = forward(x)
        embeddings = embeddings.float()
        cosines = head.cosines(embeddings)
        logits = head.logits(cosines, own, embeddings.detach().norm(dim=1))
        loss = functional.cross_entropy(logits, own)
        total = loss
        if network.qs is not None:
            ratio = certainty_ratio(cosines.detach(), own)
            quality = network.qs(embeddings).squeeze(1)
            total = loss + quality_weight * functional.smooth_l1_loss(
                quality, ratio, beta=SMOOTH_L1_BETA
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        on_step(step + 1, n_steps, loss.item())
    network.eval()
    if network.qs is not None:
        fit_quality_head(network.qs, network, head, images, all_labels, generator)
    _assert_half_precision_safe(network)
    return network


def one_cycle(progress: float) -> float:
    """Learning rate relative to its peak: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return (progress / WARM_UP) * 0.95 + 0.05
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


@torch.no_grad()
def fit_quality_head(
    quality_head: nn.Linear,
    network: IResNet,
    head: MarginHead,
    images: np.ndarray,
    labels: Tensor,
    generator: torch.Generator,
) -> None:
    """Solve the linear quality head by ridge regression for the final embeddings, in place.

    In training it followed embeddings that moved; the weights found here are the best for those
    that stay.

    Args:
        quality_head: from embedding to one number; overwritten.
        network: in evaluation mode.
        head: the class centres.
        images: uint8 [n, 112, 112, 3]; up to QUALITY_SAMPLES of them are used, degraded.
        labels: int64 [n].
        generator: CPU generator of the choice and the degradation.
    """
    chosen = torch.randperm(len(images), generator=generator)[:QUALITY_SAMPLES]
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for part in chosen.split(64):
        x = degrade(to_input(torch.from_numpy(images[part.numpy()]), 112), generator)
        rows.append(network(x))
        targets.append(certainty_ratio(head.cosines(rows[-1]), labels[part]))
    embeddings, target = torch.cat(rows).double(), torch.cat(targets).double()
    mean, average = embeddings.mean(dim=0), target.mean()
    centred = embeddings - mean
    covariance = centred.T @ centred / len(centred)
    ridge = QUALITY_RIDGE * covariance.diagonal().mean() * torch.eye(len(mean)).double()
    weight = torch.linalg.solve(covariance + ridge, centred.T @ (target - average) / len(centred))
    quality_head.weight.copy_(weight.unsqueeze(0))
    quality_head.bias.copy_((average - mean @ weight).unsqueeze(0))


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


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror image, crop, resolution, blur, colour and noise.

    Args:
        x: [n, 3, 112, 112] in [-1, 1].
        generator: CPU generator of all draws.

    Returns:
        the same shape and range.
    """
    order = torch.randperm(len(x), generator=generator)
    x = _shift_crops(x[order], generator)
    # One strength per group of images: the resolution has to be the same within one call.
    spoiled, *others = x.tensor_split(GROUPS)
    parts = [_blur(_lower_resolution(part, 28, 84, generator), generator) for part in others]
    x = torch.cat([_spoil(spoiled, generator), *parts])[torch.argsort(order)]
    n = len(x)
    gain = 1 + _uniform((n, 1, 1, 1), 0.25, generator)
    tint = 1 + _uniform((n, 3, 1, 1), 0.06, generator)
    bias = _uniform((n, 1, 1, 1), 0.2, generator)
    noise = torch.randn(x.shape, generator=generator)
    noise_level = 0.05 * torch.rand((n, 1, 1, 1), generator=generator).square()
    return ((x + 1) * gain * tint - 1 + bias + noise * noise_level).clamp_(-1, 1)


def _uniform(shape: tuple[int, ...], half_width: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * half_width


def _shift_crops(x: Tensor, generator: torch.Generator) -> Tensor:
    """What an imperfect alignment does: shift 4 px, scale 5 %, rotation 4 degrees at most; flip."""
    n = len(x)
    angle = _uniform((n,), math.radians(4), generator)
    scale = 1 + _uniform((n,), 0.05, generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = _uniform((n, 2), 4 / 56, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    transform = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin, shift[:, 0]], dim=1),
            torch.stack([sin, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(transform, [n, 3, *x.shape[2:]], align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _lower_resolution(x: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Shrink to a size in low ... high px and enlarge again, for two groups of three."""
    if torch.rand((), generator=generator) > 2 / 3:
        return x
    size = int(torch.randint(low, high + 1, (), generator=generator))
    small = functional.interpolate(x, size=(size, size), mode="area")
    return functional.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def _spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade [n, 3, h, w] until recognition suffers, by one of four ways for the whole group."""
    if len(x) == 0:
        return x
    way = int(torch.randint(4, (), generator=generator))
    height, width = x.shape[2:]
    if way == 0:  # a few pixels
        size = int(torch.randint(6, 21, (), generator=generator))
        small = functional.interpolate(x, size=(size, size), mode="area")
        return functional.interpolate(small, size=(height, width), mode="bilinear")
    if way == 1:  # noise
        level = torch.rand((len(x), 1, 1, 1), generator=generator)
        return x + level * torch.randn(x.shape, generator=generator)
    if way == 2:  # a bar over a third to a half of the face
        rows = int(height * (1 / 3 + float(torch.rand((), generator=generator)) / 6))
        top = int(torch.randint(0, height - rows + 1, (), generator=generator))
        hidden = x.clone()
        hidden[:, :, top : top + rows] = _uniform((len(x), 3, 1, 1), 1.0, generator)
        return hidden
    # tiles of a quarter of the side, some of them exchanged
    tiles = x.unflatten(2, (4, -1)).unflatten(4, (4, -1)).transpose(3, 4).flatten(2, 3)
    order = torch.arange(16)
    chosen = torch.randperm(16, generator=generator)[
        : int(torch.randint(4, 13, (), generator=generator))
    ]
    order[chosen] = chosen.roll(1)
    shuffled = tiles[:, :, order].unflatten(2, (4, 4)).transpose(3, 4)
    return shuffled.flatten(4, 5).flatten(2, 3)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur up to sigma 1.2 px, for one group of two."""
    if torch.rand((), generator=generator) < 0.5:
        return x
    sigma = 0.3 + 0.9 * float(torch.rand((), generator=generator))
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 7)
    x = functional.conv2d(x, kernel.unsqueeze(2), padding=(0, 3), groups=3)
    return functional.conv2d(x, kernel.unsqueeze(3), padding=(3, 0), groups=3)


def _assert_half_precision_safe(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"training diverged: {name} is not finite")
        if value.is_floating_point() and value.abs().max() > HALF_PRECISION_MAX:
            raise FloatingPointError(f"training diverged: {name} exceeds float16")
