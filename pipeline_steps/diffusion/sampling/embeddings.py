"""ID3 for the sampler: which embedding and which attributes each image is told.

An identity is a direction w: the mean of its photographs' embeddings, or an anchor of somebody who
does not exist. Each image gets an embedding y beside it, drawn by (study seed, identity, index)
alone, and attributes s, which depend on the prompt set, too. Both stand in the image's row.

Source: ID3 (Xu et al., NeurIPS 2024), its dataset generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.diffusion.id3 import ATTRIBUTES, FILE_NAME, TRAINED_ON, Id3
from pipeline_steps.diffusion.sampling.gate import centres
from pipeline_steps.diffusion.sampling.plan import Origin, Row, generator_file
from pipeline_steps.diffusion.sampling.sampler import ImageRequest
from pipeline_steps.identities.anchors import perturb
from pipeline_steps.identities.dataset import read_subjects
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import EmbeddingSettings, SampleSettings

OF_EMBEDDINGS = "embeddings"  # a row's weights_source: one set of weights, and an embedding
TARGET = "target"


class Embeddings:
    """Arguments are those of ``plan.hand``."""

    at_once: ClassVar[Mapping[str, int]] = {"cpu": 64, "cuda": 1024}
    columns: ClassVar[tuple[str, ...]] = (TARGET, *ATTRIBUTES)

    def __init__(self, frozen: Frozen[SampleSettings], dataset: Path, folder: Path | None) -> None:
        self._frozen = frozen
        self._settings = frozen.settings.embeddings or EmbeddingSettings()
        self._path = path = generator_file(frozen, folder, FILE_NAME)
        try:
            self._tensors = load_file(path)
            self._trained_on = self._tensors.pop(TRAINED_ON).numpy()
        except (SafetensorError, KeyError) as error:
            raise StepError(f"{path} holds no network of ID3: {error}") from error
        self._sha256 = sha256_file(path)
        self._directions = centres(frozen, dataset, read_subjects(dataset))
        self._conditions: dict[str, list[Row]] = {}

    def origin(self, identity: str, token: str) -> Origin:
        return self._sha256, OF_EMBEDDINGS

    def conditions(self, identity: str) -> Sequence[Row]:
        """y, s and their words, of each of an identity's images.

        Raises:
            StepError: nothing is known of the identity's face.
        """
        if identity not in self._conditions:
            direction = self._directions[identity]
            if not np.isfinite(direction).all():
                raise StepError(f"{identity} has no photograph with an embedding to go by")
            self._conditions[identity] = [
                draw_condition(
                    direction,
                    self._trained_on,
                    self._settings,
                    beside=numpy_generator(self._frozen.seed, "embedding", identity, index),
                    facts=numpy_generator(
                        self._frozen.seed, "attributes", self._prompts, identity, index
                    ),
                )
                for index in range(self._frozen.settings.images_per_identity)
            ]
        return self._conditions[identity]

    @property
    def _prompts(self) -> str:
        """Images of other prompt sets are other images."""
        return self._frozen.variant["prompts"]

    @contextmanager
    def on(self, base: BaseModel, identities: Sequence[str]) -> Iterator[Told]:
        before = base.unet
        try:
            network = Id3.of(before, self._tensors)
        except ValueError as error:
            raise StepError(f"{self._path} does not fit {base.name!r}: {error}") from error
        nn.Module.to(network, base.device, base.dtype)
        base.unet = nn.Module.to(network.unet, memory_format=torch.channels_last)
        try:
            yield Told(base, network, {name: self.conditions(name) for name in identities})
        finally:
            base.unet = before


def draw_condition(
    direction: NDArray[np.floating],
    trained_on: NDArray[np.floating],
    settings: EmbeddingSettings,
    *,
    beside: np.random.Generator,
    facts: np.random.Generator,
) -> Row:
    """What one image is told.

    Args:
        direction: w, [d].
        trained_on: attributes of training images, [m, 4], NaN where not known.
        settings: how far beside w, and which attributes are drawn.
        beside: draws y.
        facts: draws s.

    Returns:
        target (y, single precision), the attributes (None: any), and what of them is known as words
        in the place of a prompt.
    """
    [y] = perturb(direction[None], 1, *settings.likeness, beside)[0]
    drawn = trained_on[int(facts.integers(len(trained_on)))] if len(trained_on) else [np.nan] * 4
    values = dict(zip(ATTRIBUTES, map(float, drawn), strict=True))
    for name, (low, high) in (settings.attributes or {}).items():
        values[name] = float(facts.uniform(low, high))
    if settings.attributes is None:
        values = dict.fromkeys(values, np.nan)
    known = {name: round(value, 2) for name, value in values.items() if np.isfinite(value)}
    words = ", ".join(f"{name} {value:.0f}" for name, value in known.items())
    return {
        "prompt": words,
        "negative_prompt": "",
        TARGET: y.astype(np.float32).tolist(),
        **{name: known.get(name) for name in ATTRIBUTES},
    }


class Told:
    """What lies on the network: an embedding and attributes for each image.

    Args:
        base: With ID3's denoiser.
        network: ID3's.
        conditions: Identity to what each of its images is told.
    """

    compiles = True

    def __init__(
        self, base: BaseModel, network: Id3, conditions: Mapping[str, Sequence[Row]]
    ) -> None:
        self._base, self._network, self._conditions = base, network, conditions

    def activate(self, rows: Sequence[int] | None, length: int = 1, guided: bool = False) -> None:
        """See ``sampler.OnNetwork``; who the images are is said by the condition."""

    def condition(self, requests: Sequence[ImageRequest | None]) -> Conditioning:
        """Tokens of images; None: of anybody."""
        told = self._conditions
        rows = [None if r is None else told[r.identity][r.index] for r in requests]
        faces = [None if r is None else told[r.of or r.identity][r.index] for r in requests]
        width = len(next(row[TARGET] for row in faces if row is not None))
        y = [[np.nan] * width if row is None else row[TARGET] for row in faces]
        s = [
            [np.nan if row is None or row[name] is None else row[name] for name in ATTRIBUTES]
            for row in rows
        ]
        return self._network.tell(self._base, self._on_device(y), self._on_device(s))

    def _on_device(self, rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32, device=self._base.device)
