"""Sets of images as scores see them: whose each image is, and its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.io.tensors import load_features
from pipeline_steps.naming import identities_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import source_of
from pipeline_steps.study.record import check_same_images
from pipeline_steps.study.source import Source

Rows = NDArray[np.float32]
NO_IMAGE = "no image of the set shows a face"


@dataclass(frozen=True)
class ImageSet:
    """One set of images: file and identity of each [n], features float32 [n, d] by extractor."""

    files: list[str]
    identities: list[str]
    features: dict[str, Rows]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: NDArray[np.intp]) -> ImageSet:
        """The images at these rows."""
        return ImageSet(
            [self.files[row] for row in rows],
            [self.identities[row] for row in rows],
            {name: values[rows] for name, values in self.features.items()},
        )

    def drawn(self, size: int, rng: np.random.Generator) -> ImageSet:
        """So many of the images, drawn without replacement; all, if there are no more."""
        if size >= len(self):
            return self
        return self.take(np.sort(rng.choice(len(self), size=size, replace=False)))

    def of(self, people: Sequence[str]) -> ImageSet:
        """The images of some people."""
        return self.take(np.flatnonzero(np.isin(self.identities, people)))


Scored = tuple[Source, ImageSet]


@dataclass
class Loaded:
    """Feature files of the wanted extractors that were read, with the header of each.

    Attributes:
        extractors: wanted of every set.
        of_prompts: wanted beside them of sets that were made from prompts.
    """

    extractors: Sequence[str]
    headers: list[tuple[Path, dict[str, str]]] = field(default_factory=list)
    of_prompts: Sequence[str] = ()

    def set_of(
        self, paths: Sequence[Path], flag: str, expected: Source | None = None
    ) -> Scored | None:
        """The set behind a flag's files; None where the flag was not given."""
        if not paths:
            return None
        sources = {source_of(path, "features") for path in paths}
        if len(sources) > 1:
            names = ", ".join(sorted(source.name for source in sources))
            raise StepError(f"{flag} mixes the sets {names}; pass the files of one")
        source = sources.pop()
        if expected not in (None, source):
            raise StepError(f"{flag} got features of {source.name}")
        by_name = {path.stem: path for path in paths}
        prompted = not (source.is_reference or source.is_external)
        wanted = [*self.extractors, *(self.of_prompts if prompted else ())]
        missing = [name for name in wanted if name not in by_name]
        if missing:
            names = ", ".join(f"{name}.safetensors" for name in missing)
            raise StepError(
                f"{flag} lacks {names} of {source.name}; the score settings name these extractors"
            )
        loaded = {by_name[name]: load_features(by_name[name]) for name in wanted}
        first, known = next(iter(loaded.items()))
        for path, features in loaded.items():
            if features.files != known.files:
                raise StepError(
                    f"{path} and {first} are about different images: "
                    "extract both again from the same aligned set"
                )
            check_same_images(path, features.metadata, first, known.metadata.get("images"))
            self.headers.append((path, features.metadata))
        rows = {path.stem: features.features for path, features in loaded.items()}
        return source, ImageSet(known.files, identities_of(known.files), rows)
