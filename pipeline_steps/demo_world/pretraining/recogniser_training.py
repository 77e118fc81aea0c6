"""Pretraining of the embedded recogniser: a small iResNet with a face-quality head.

Loss: CosFace (Wang et al., CVPR 2018) or ArcFace (Deng et al., CVPR 2019), with a margin that grows
from zero, so that a small network starts to learn at once. Quality head: CR-FIQA (Boutros et al.,
CVPR 2023): a sample's certainty ratio CCS / (NNCCS + 1 + eps), the cosine to its own class centre
over the cosine to the nearest other one, regressed by a smooth L1 loss.

Training images are degraded at random, see degradation.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.demo_world.rendering.degradation import degrade
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.recognition.backbones import to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.seeds import seed_for, torch_generator

EPSILON = 1e-9
WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
MARGIN_RISE = 0.4  # fraction of the steps in which the margin rises
CLIP_NORM = 5.0
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
    loss: str = "cosface",  # a name in recognition.margins.MARGINS
    scale: float = 32.0,
    margin: float = 0.35,  # final; a cosine (cosface) or radians (arcface)
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
        head = MarginHead(
            network.embedding_dim, int(labels.max()) + 1, loss=loss, scale=scale, margin=0.0
        )
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
        margin_loss = functional.cross_entropy(logits, own)
        total = margin_loss
        if network.qs is not None:
            ratio = certainty_ratio(cosines.detach(), own)
            quality = network.qs(embeddings).squeeze(1)
            total = margin_loss + quality_weight * functional.smooth_l1_loss(
                quality, ratio, beta=SMOOTH_L1_BETA
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        on_step(step + 1, n_steps, margin_loss.item())
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


@torch.no_grad()
def shorten_embeddings(
    network: IResNet,
    images: np.ndarray,
    length: int,
    *,
    layers: tuple[int, ...],
    widths: tuple[int, ...],
) -> IResNet:
    """The same recogniser with shorter embeddings: a smaller file, nearly the same cosines.

    Embeddings are turned onto the directions in which those of `images` are longest (principal
    axes about zero, which keep scalar products); the turn is folded into the last layer.

    Args:
        network: in evaluation mode, without a quality head, which reads the long embeddings.
        images: uint8 [n, 112, 112, 3], n >= `length`.
        length: numbers that are kept.
        layers, widths: the network's.

    Returns:
        a network of the same architecture with `length`-d embeddings.

    Raises:
        ValueError: too few images.
    """
    if len(images) < length:
        raise ValueError(f"{length} directions need as many images, got {len(images)}")
    parts = (torch.from_numpy(images[i : i + 64]) for i in range(0, len(images), 64))
    rows = [network(to_input(part, 112)) for part in parts]
    turn = torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)[2][:length]
    norm = network.features
    gain = norm.weight.double() / (_present(norm.running_var).double() + norm.eps).sqrt()
    offset = norm.bias.double() + gain * (network.fc.bias - _present(norm.running_mean)).double()
    state = network.state_dict()
    state["fc.weight"] = (turn * gain @ network.fc.weight.double()).float()
    state["fc.bias"] = (turn @ offset).float()
    state["features.weight"] = torch.full((length,), (1 + norm.eps) ** 0.5)
    state["features.bias"] = state["features.running_mean"] = torch.zeros(length)
    state["features.running_var"] = torch.ones(length)
    short = IResNet(layers, widths, embedding_dim=length)
    short.load_state_dict(state)
    return short.eval()


def _present(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # batch normalisation with running statistics
    return buffer


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


def _assert_half_precision_safe(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"training diverged: {name} is not finite")
        if value.is_floating_point() and value.abs().max() > HALF_PRECISION_MAX:
            raise FloatingPointError(f"training diverged: {name} exceeds float16")
