"""Speed of recognition training, beside the same work in its plain form.

  python benchmarks/recognition.py [--backbone iresnet18] [--images 512] [--threads 1]

Plain: feature maps with the channels first, RandAugment image by image, embeddings in batches of
128, a wait for the loss in every step. Both train the same network on the same random images; an
embedding here is an image and its mirror image. CPU seconds of this process on a CPU, wall seconds
on a GPU; the better of two rounds each, taken in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import RandAugment

from pipeline_steps.recognition.backbones import Architecture, embed, to_device, to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.recognition.training import train
from pipeline_steps.study.settings.recognition import RecogniseSettings

CLASSES = 16
OPERATIONS, MAGNITUDE = 4, 16


def plain_epoch(
    network: nn.Module,
    head: MarginHead,
    images: np.ndarray,
    settings: RecogniseSettings,
    augment: bool,
) -> None:
    """One epoch of the textbook loop."""
    device = next(network.parameters()).device
    parameters = [p for p in (*network.parameters(), *head.parameters()) if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    transform = RandAugment(OPERATIONS, MAGNITUDE)
    network.train()
    order = torch.randperm(len(images))
    size = min(settings.batch_size, len(images))
    for rows in order[: len(order) // size * size].split(size):
        batch = torch.from_numpy(images[rows.numpy()])
        if augment:
            pictures = [transform(image) for image in batch.permute(0, 3, 1, 2)]
            batch = torch.stack(pictures).permute(0, 2, 3, 1)
        x = to_input(batch.to(device), settings.input_size).contiguous()
        classes = (rows % CLASSES).to(device)
        loss = functional.cross_entropy(head(network(x), classes), classes)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        loss.item()


@torch.inference_mode()
def plain_embeddings(network: nn.Module, images: np.ndarray, size: int) -> None:
    """Embeddings of images and mirror images in batches of 128."""
    network.eval()
    device = next(network.parameters()).device
    for start in range(0, len(images), 128):
        x = to_input(torch.from_numpy(images[start : start + 128]).to(device), size).contiguous()
        network(x).cpu()
        network(x.flip(3)).cpu()


def seconds(work: Callable[[], object], device: str) -> float:
    """How long some work takes."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def works(
    built_as: Architecture, images: np.ndarray, settings: RecogniseSettings, device: str
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is measured, by name: the plain form and ours."""
    labels = np.arange(len(images)) % CLASSES
    size = settings.input_size
    plain = built_as.build().to(device)
    ours = to_device(built_as.build(), device)
    head = MarginHead(built_as.embedding_dim, CLASSES).to(device)

    def epoch(augment: bool) -> object:
        once = settings.model_copy(update={"augmentation": "randaugment" if augment else "none"})
        return train(ours, head, images, labels, once, validate=lambda network: 0.0, seed=0)

    return {
        "training": (
            lambda: plain_epoch(plain, head, images, settings, augment=False),
            lambda: epoch(augment=False),
        ),
        "training, RandAugment": (
            lambda: plain_epoch(plain, head, images, settings, augment=True),
            lambda: epoch(augment=True),
        ),
        "embedding": (
            lambda: plain_embeddings(plain, images, size),
            lambda: embed(ours, images, input_size=size),
        ),
    }


def main() -> None:
    """Print images per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="demo", help="demo, or a name such as iresnet18")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    demo = {
        "backbone": "custom", "layers": (1, 1, 1, 1), "widths": (16, 16, 32, 64, 128),
        "embedding_dim": 128, "input_size": 64, "batch_size": 16,
    }  # fmt: skip
    chosen = demo if arguments.backbone == "demo" else {"backbone": arguments.backbone}
    settings = RecogniseSettings.model_validate(
        chosen
        | {"epochs": 1, "precision": "bfloat16" if arguments.bfloat16 else "float32"}
        | {"randaugment_operations": OPERATIONS, "randaugment_magnitude": MAGNITUDE}
    )
    built_as = Architecture.of(settings)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (arguments.images, 14, 14, 3), dtype=np.uint8)
    images = coarse.repeat(8, 1).repeat(8, 2)
    print(f"{arguments.backbone}, {device}, {arguments.threads} threads: images per second")
    for name, pair in works(built_as, images, settings, device).items():
        best = [float("inf")] * 2
        for _ in range(2):
            best = [min(b, seconds(work, device)) for b, work in zip(best, pair, strict=True)]
        plain, ours = (len(images) / b for b in best)
        print(f"{name:24s} plain {plain:8.1f}   ours {ours:8.1f}   x{ours / plain:.2f}")


if __name__ == "__main__":
    main()
