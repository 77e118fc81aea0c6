"""Identities of random latents, a face in the centre, and fleets of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Runtime
from pipeline_steps.diffusion.guide import Guide
from pipeline_steps.diffusion.training.data import LatentSet, Recipe
from pipeline_steps.diffusion.training.fleet import FineTuned, Fleet
from pipeline_steps.study.settings.diffusion import FinetuneSettings

SETTINGS = FinetuneSettings(
    steps=6, learning_rate=1e-2, rank=2, alpha=2.0, clip_norm=0.02, identity_weight=1.0
)
NAMES = ("ID_1", "ID_2", "ID_3")


class CentreFace:
    """A face in the centre of every seen image, embedded by a fixed random projection."""

    def __init__(self, sees: Callable[[Tensor], bool] = lambda image: True) -> None:
        self.sees = sees
        self.projection = torch.randn(
            3 * 16 * 16, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )

    def boxes(self, images: Tensor) -> list[np.ndarray | None]:
        box = np.array([8, 8, 24, 24], dtype=np.float32)
        return [box if self.sees(image) else None for image in images]

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        assert boxes.shape == (len(images), 4)
        region = images[:, :, 8:24, 8:24].flatten(1)
        return torch.tanh(region @ self.projection.to(region.dtype))


def latent_set(name: str, count: int, prompt: str, dtype: torch.dtype) -> LatentSet:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    mean, std = torch.randn(2, count, 4, 8, 8, generator=generator, dtype=dtype)
    embeddings = torch.randn(count, 32, generator=generator, dtype=dtype)
    return LatentSet(mean, 0.1 * std.abs(), embeddings, prompt)


def train(
    base: BaseModel,
    names: tuple[str, ...] = NAMES,
    method: str = "idbooth",
    settings: FinetuneSettings = SETTINGS,
    guide: CentreFace | None = None,
) -> dict[str, FineTuned]:
    subjects = {
        name: latent_set(name, 3 + i, "photo of sks person", base.dtype)
        for i, name in enumerate(NAMES)
        if name in names
    }
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    recipe = Recipe(method, settings.for_method(method), 11)
    return fine_tune(base, subjects, prior, recipe, guide or CentreFace())


def fine_tune(
    base: BaseModel,
    subjects: Mapping[str, LatentSet],
    prior: LatentSet,
    recipe: Recipe,
    guide: Guide | None = None,
) -> dict[str, FineTuned]:
    with Fleet(base, subjects, prior, recipe, guide) as fleet:
        return finish(fleet)


def vector(result: FineTuned) -> Tensor:
    return torch.cat([part.flatten() for pair in result.adapter.values() for part in pair])


def relative(a: FineTuned, b: FineTuned) -> float:
    return float((vector(a) - vector(b)).norm() / vector(b).norm())


def a_fleet(
    base: BaseModel,
    names: Sequence[str] = NAMES,
    *,
    method: str = "idbooth",
    runtime: Runtime | None = None,
    guide: CentreFace | None = None,
    settings: FinetuneSettings = SETTINGS,
) -> Fleet:
    subjects = {name: latent_set(name, 3, "photo of sks person", base.dtype) for name in names}
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    recipe = Recipe(method, settings.for_method(method), 11)
    return Fleet(base, subjects, prior, recipe, guide or CentreFace(), runtime)


def finish(fleet: Fleet) -> dict[str, FineTuned]:
    while not fleet.finished:
        fleet.step()
    return fleet.results()
