"""A dataset of random images, a tiny random base model, and configurations for the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features, save_tensors
from pipeline_steps.io.weights import Weights
from tests.registry import entry

SIDE = 32


class EveryFace:
    """A face in the centre of every image, or of all but every n-th."""

    def __init__(self, blind_every: int = 0) -> None:
        self.blind_every = blind_every
        self.seen = 0

    def boxes(self, images: Tensor) -> list[np.ndarray | None]:
        result: list[np.ndarray | None] = []
        for _ in images:
            self.seen += 1
            blind = self.blind_every and self.seen % self.blind_every == 0
            result.append(None if blind else np.array([8, 8, 24, 24], dtype=np.float32))
        return result

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images[:, :, 8:24, 8:24], 4).flatten(1)


def base_weights(folder: Path) -> Weights:
    return entry("base_model", "stable-diffusion", folder, name="tiny", resolution=SIDE)


def recogniser_weights(folder: Path, input_size: int = 112) -> Weights:
    """A small recogniser with random weights."""
    from pipeline_steps.faces.iresnet import IResNet

    size: dict[str, Any] = {
        "layers": [1, 1, 1, 1],
        "widths": [8, 8, 8, 8, 8],
        "embedding_dim": 48,
        "input_size": input_size,
    }
    torch.manual_seed(0)
    network = IResNet(**{name: v if isinstance(v, int) else tuple(v) for name, v in size.items()})
    path = folder / "recogniser.safetensors"
    save_tensors(path, network.state_dict())
    return entry("recogniser", "iresnet", path, name="judge", **size)


def write_dataset(folder: Path, counts: dict[str, int], recogniser: Weights | None = None) -> Path:
    """A prepared dataset: identity to number of kept images, plus a rejected one each.

    Embeddings are noise, and say that they are by the recogniser.
    """
    rows: list[dict[str, Any]] = []
    table = ["identity,gender,n_images,source,consent"]
    for i, (identity, count) in enumerate(counts.items()):
        generator = np.random.default_rng(i)
        table.append(f"{identity},{'MF'[i % 2]},{count},test,yes")
        files = []
        for number in range(count):
            file = f"images/{identity}/{number}.png"
            image = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            write_png(folder / file, image)
            files.append(file)
            digest = sha256_file(folder / file)
            rows.append(
                {"identity": identity, "file": file, "sha256": digest, "kept": True, "reason": ""}
            )
        rows.append({"identity": identity, "kept": False, "reason": "no face"})
        if files:
            vectors = generator.normal(size=(count, 48)).astype(np.float32)
            save_features(
                folder / "embeddings" / f"{identity}.safetensors",
                vectors[::-1].copy(),
                files[::-1],  # another order than the manifest's
                key="embeddings",
                **({} if recogniser is None else embedded_by(recogniser)),
            )
    (folder / "identities.csv").write_text("\n".join(table) + "\n")
    write_manifest(
        folder / "manifest.parquet", rows, ["identity", "file", "sha256", "kept", "reason"]
    )
    return folder


def replace_image(folder: Path, file: str, image: np.ndarray) -> None:
    """Put another image in the place of one of the dataset's, in its manifest too."""
    before = sha256_file(folder / file)
    write_png(folder / file, image)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    manifest["sha256"] = manifest["sha256"].replace(before, sha256_file(folder / file))
    write_manifest(folder / "manifest.parquet", manifest)


def write_frozen(
    path: Path,
    settings: dict[str, Any],
    weights: dict[str, Weights],
    variant: dict[str, str],
    seed: int = 7,
) -> Path:
    frozen = {
        "study": "test",
        "step": path.stem,
        "seed": seed,
        "settings": settings,
        "weights": {role: entry.model_dump(mode="json") for role, entry in weights.items()},
        "variant": variant,
    }
    path.write_text(json.dumps(frozen))
    return path
