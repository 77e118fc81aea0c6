"""Grids of images, and the gallery of a study's photographs and samples that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline_steps.io.figures import STYLE
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.tensors import Features
from pipeline_steps.naming import identity_of, natural_key
from pipeline_steps.study.source import Source

NO_FACE = "no face"
RIM = "#c9c9c9"

Image = NDArray[np.uint8]
# By identity, then by file name without folder and suffix.
Embeddings = Mapping[str, Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Tile:
    """One image of a grid, or an empty place, with the text under it; photographs are framed."""

    image: Image | None
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class GridRow:
    """One row of images, its upright label at the left, and text above each; may be empty."""

    label: str
    tiles: tuple[Tile, ...]
    headers: tuple[str, ...] = ()


def grid_figure(rows: Sequence[GridRow], *, width: float, gap_after_first: bool = False) -> Figure:
    """Rows of square images with captions beneath.

    Args:
        rows: the rows; shorter ones leave the right side empty.
        width: inches.
        gap_after_first: separate the first column (a photograph) from the generated images.
    """
    columns = max(len(row.tiles) for row in rows)
    captions = any(tile.caption for row in rows for tile in row.tiles)
    # All measures in inches.
    left = 0.24 if any(row.label for row in rows) else 0.02
    gap, space = (0.10 if gap_after_first else 0.0), 0.04
    side = (width - left - gap - space * columns) / columns
    under = 0.15 if captions else space
    headers = [[fill(text, max(8, int(side * 17))) for text in row.headers] for row in rows]
    above = [
        0.03 + 0.105 * max((text.count("\n") + 1 for text in texts if text), default=0)
        for texts in headers
    ]
    height = sum(above) + len(rows) * (side + under)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        bottom = height
        for row, texts, room in zip(rows, headers, above, strict=True):
            bottom -= room + side
            middle = (bottom + side / 2) / height
            figure.text(
                0.45 * left / width, middle, row.label, rotation=90, ha="center", va="center"
            )
            for column, tile in enumerate(row.tiles):
                x = left + column * (side + space) + (gap if column else 0.0)
                box = (x / width, bottom / height, side / width, side / height)
                _draw_tile(figure.add_axes(box), tile)
                if column < len(texts):
                    place = ((x + side / 2) / width, (bottom + side + 0.02) / height)
                    figure.text(*place, texts[column], ha="center", va="bottom", fontsize=6)
            bottom -= under
    return figure


def _draw_tile(axis: Axes, tile: Tile) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_edgecolor("#222222" if tile.framed else RIM)
        spine.set_linewidth(1.2 if tile.framed else 0.4)
    if tile.image is None:
        axis.set_facecolor("#f4f4f4")
    else:
        axis.imshow(tile.image, interpolation="lanczos", aspect="auto")
    if tile.caption:
        axis.set_xlabel(tile.caption, labelpad=1.5, fontsize=6.5)


@dataclass(frozen=True)
class Gallery:
    """What the grids draw from: manifests with their folders, and embeddings of length 1."""

    photographs: pd.DataFrame  # kept rows
    dataset: Path
    samples: Mapping[Source, pd.DataFrame]
    folders: Mapping[Source, Path]
    real: Embeddings
    synthetic: Mapping[Source, Embeddings]
    external: Mapping[Source, pd.DataFrame] = field(default_factory=dict)  # aligned faces

    def identities(self) -> list[str]:
        """Identities with photographs and samples of every variant, or of any, in natural order.

        Of people who do not exist, those with samples of every variant.
        """
        with_samples = [set(frame["identity"].astype(str)) for frame in self.samples.values()]
        photographed = set(self.photographs["identity"].astype(str))
        names = photographed.intersection(*with_samples)
        names = names or photographed.intersection(chain.from_iterable(with_samples))
        names = names or set.intersection(*(with_samples or [set()]))
        return sorted(names, key=natural_key)

    def photograph_tiles(self, identity: str, count: int) -> list[Tile]:
        """Photographs spread evenly over the capture positions, with their similarity."""
        files = self._photographs_of(identity)
        chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
        own = self.real.get(identity, {})
        return [
            Tile(
                _read(self.dataset / file),
                self._caption(identity, own.get(Path(file).stem), leave_out=Path(file).stem),
                framed=True,
            )
            for file in (files[index] for index in chosen)
        ]

    def portrait_tiles(self, identity: str) -> list[Tile]:
        """The photograph from the middle of the capture positions, without caption, if any."""
        files = self._photographs_of(identity)
        middle = files[(len(files) - 1) // 2 :][:1] if files else []
        return [Tile(_read(self.dataset / file), framed=True) for file in middle]

    def sample_tiles(self, source: Source, identity: str, count: int) -> list[Tile]:
        """The first samples of an identity with their similarity to its photographs."""
        own, folder = self.synthetic[source].get(identity, {}), self.folders[source]
        return [
            Tile(_read(folder / file), self._caption(identity, own.get(Path(file).stem)))
            for file in self._samples_of(source, identity)["file"].head(count)
        ]

    def people_tiles(self, source: Source, count: int) -> list[Tile]:
        """The first image of each of the first people of a set that others have made."""
        files = self.external[source].groupby("identity", sort=False)["file"].first()
        return [Tile(_read(self.folders[source] / file)) for file in files.head(count)]

    def prompts_of(self, source: Source, identity: str, count: int) -> list[str]:
        """The prompts behind `sample_tiles`."""
        return [str(p) for p in self._samples_of(source, identity)["prompt"].head(count)]

    def similarities(self, source: Source) -> pd.DataFrame:
        """Of every sample its prompt, whether a face was found, and the mean similarity to the
        identity's photographs; NaN where there is no face or no photograph.
        """
        frame = self.samples[source]
        means = {name: np.mean(list(rows.values()), axis=0) for name, rows in self.real.items()}
        faces, values = [], []
        for identity, file in zip(frame["identity"].astype(str), frame["file"], strict=True):
            embedding = self.synthetic[source].get(identity, {}).get(Path(file).stem)
            known = embedding is not None and identity in means
            faces.append(embedding is not None)
            values.append(float(means[identity] @ embedding) if known else np.nan)
        return pd.DataFrame({"prompt": frame["prompt"], "face": faces, "similarity": values})

    def _photographs_of(self, identity: str) -> list[str]:
        rows = self.photographs[self.photographs["identity"].astype(str) == identity]
        by = [column for column in ("position", "camera", "file") if column in rows.columns]
        return [str(file) for file in rows.sort_values(by, kind="stable")["file"]]

    def _samples_of(self, source: Source, identity: str) -> pd.DataFrame:
        frame = self.samples[source]
        return frame[frame["identity"].astype(str) == identity].sort_values("index")

    def _caption(
        self, identity: str, embedding: NDArray[np.float64] | None, leave_out: str = ""
    ) -> str:
        """Mean cosine similarity to the identity's photographs, the image itself left out."""
        if embedding is None:
            return NO_FACE
        own = self.real.get(identity, {})
        others = [row for name, row in own.items() if name != leave_out]
        if not others:
            return ""
        return f"{float(np.mean(np.stack(others) @ embedding)):.2f}".replace("-", "−")


def unit_embeddings(features: Features) -> Embeddings:
    """Embedding per image, at length 1, by identity and file name."""
    rows = features.features.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for file, row in zip(features.files, rows, strict=True):
        found.setdefault(identity_of(file), {})[Path(file).stem] = row
    return found


def distinct_words(prompts: Sequence[str]) -> list[str]:
    """Prompts without the words that all of them share.

    A header has room for what differs: "neutral, forest" of "photo of person, neutral expression,
    busy forest environment". Where nothing differs, it is empty.
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


def _read(path: Path) -> NDArray[np.uint8] | None:
    """The image, or None where it is unusable: one bad file must not cost the whole figure."""
    try:
        return read_image(path)
    except (BadImage, OSError):
        return None
