"""Images and similarities of one study's identities, looked up for the image grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline_steps.evidence.figures.plots import Tile
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.tensors import Features
from pipeline_steps.naming import natural_key
from pipeline_steps.study.sources import Source, identity_of

NO_FACE = "no face"
ImageKey = tuple[str, str]  # identity, file name without folder and suffix


@dataclass(frozen=True)
class Gallery:
    """What the grids draw from.

    Attributes:
        photographs: dataset manifest, kept rows; `file` is relative to `dataset`.
        dataset: folder of the prepared images.
        samples: manifest per variant; `file` is relative to the folder.
        folders: folder of each variant's samples.
        real: unit embeddings of the photographs by identity and name.
        synthetic: the same of each variant's samples.
    """

    photographs: pd.DataFrame
    dataset: Path
    samples: Mapping[Source, pd.DataFrame]
    folders: Mapping[Source, Path]
    real: Mapping[ImageKey, NDArray[np.float64]]
    synthetic: Mapping[Source, Mapping[ImageKey, NDArray[np.float64]]]

    def identities(self) -> list[str]:
        """Identities with photographs and samples, in natural order."""
        with_samples = [set(frame["identity"].astype(str)) for frame in self.samples.values()]
        names = set(self.photographs["identity"].astype(str)).intersection(*with_samples)
        return sorted(names, key=natural_key)

    def photograph_tiles(self, identity: str, count: int) -> list[Tile]:
        """Photographs spread evenly over the capture positions, with their similarity."""
        rows = self._photographs_of(identity)
        chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return [self._photograph(rows.iloc[index]) for index in chosen]

    def portrait_tile(self, identity: str) -> Tile:
        """The photograph from the middle of the capture positions, without caption."""
        rows = self._photographs_of(identity)
        tile = self._photograph(rows.iloc[(len(rows) - 1) // 2])
        return Tile(tile.image, "", framed=True)

    def sample_tiles(self, source: Source, identity: str, count: int) -> list[Tile]:
        """The first samples of an identity with their similarity to its photographs."""
        return [
            Tile(
                _read(self.folders[source] / str(row["file"])),
                self._similarity(
                    self.synthetic[source].get(_key(identity, str(row["file"]))), identity
                ),
            )
            for _, row in self._samples_of(source, identity).head(count).iterrows()
        ]

    def similarities(self, source: Source) -> pd.DataFrame:
        """Prompt and mean similarity to the identity's photographs of every sample.

        NaN where no face was found or the identity has no photographs.
        """
        owners = {identity for identity, _ in self.real}
        means = {
            owner: np.mean([row for key, row in self.real.items() if key[0] == owner], axis=0)
            for owner in owners
        }
        found = self.synthetic[source]
        values = []
        for identity, file in zip(
            self.samples[source]["identity"], self.samples[source]["file"], strict=True
        ):
            embedding = found.get(_key(str(identity), str(file)))
            known = embedding is not None and str(identity) in means
            values.append(float(means[str(identity)] @ embedding) if known else np.nan)
        return pd.DataFrame({"prompt": self.samples[source]["prompt"], "similarity": values})

    def prompts_of(self, source: Source, identity: str, count: int) -> list[str]:
        """The prompts behind `sample_tiles`."""
        return [str(p) for p in self._samples_of(source, identity)["prompt"].head(count)]

    def _photographs_of(self, identity: str) -> pd.DataFrame:
        rows = self.photographs[self.photographs["identity"].astype(str) == identity]
        by = [column for column in ("position", "camera", "file") if column in rows.columns]
        return rows.sort_values(by, kind="stable")

    def _samples_of(self, source: Source, identity: str) -> pd.DataFrame:
        frame = self.samples[source]
        return frame[frame["identity"].astype(str) == identity].sort_values("index")

    def _photograph(self, row: pd.Series) -> Tile:
        identity, file = str(row["identity"]), str(row["file"])
        key = _key(identity, file)
        caption = self._similarity(self.real.get(key), identity, leave_out=key)
        return Tile(_read(self.dataset / file), caption, framed=True)

    def _similarity(
        self,
        embedding: NDArray[np.float64] | None,
        identity: str,
        leave_out: ImageKey | None = None,
    ) -> str:
        """Mean cosine similarity to the identity's photographs, the image itself left out."""
        if embedding is None:
            return NO_FACE
        others = [
            other for key, other in self.real.items() if key[0] == identity and key != leave_out
        ]
        if not others:
            return ""
        return f"{float(np.mean(np.stack(others) @ embedding)):.2f}".replace("-", "−")


def unit_embeddings(features: Features) -> dict[ImageKey, NDArray[np.float64]]:
    """Embedding per image, at length 1, by identity and file name."""
    rows = features.features.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        _key(identity_of(file), file): row for file, row in zip(features.files, rows, strict=True)
    }


def distinct_words(prompts: Sequence[str]) -> list[str]:
    """Prompts without the words that all of them share.

    A header has room for what differs: "neutral, forest" of "photo of person, neutral expression,
    busy forest environment". Where nothing differs, the headers are empty.
    """
    if len(prompts) < 2:
        return list(prompts)
    phrases = [[part.split() for part in prompt.split(",")] for prompt in prompts]
    words = [{word for part in prompt for word in part} for prompt in phrases]
    shared = set.intersection(*words)
    return [
        ", ".join(
            kept
            for part in prompt
            if (kept := " ".join(word for word in part if word not in shared))
        )
        for prompt in phrases
    ]


def _key(identity: str, file: str) -> ImageKey:
    return identity, Path(file).stem


def _read(path: Path) -> NDArray[np.uint8] | None:
    """The image, or None where it is unusable: one bad file must not cost the whole figure."""
    try:
        return read_image(path)
    except (BadImage, OSError):
        return None
