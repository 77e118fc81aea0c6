"""Matplotlib figures from arrays: similarity distributions and grids of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline_steps.io.figures import STYLE

# Okabe and Ito (2008): told apart with any colour vision, and in this order by lightness too.
COLOURS = {
    "untuned": "#8c8c8c",
    "dreambooth": "#E69F00",
    "portraitbooth": "#009E73",
    "idbooth": "#0072B2",
}
SPARE_COLOURS = ("#CC79A7", "#D55E00", "#56B4E9", "#000000", "#B8A900")
RIM = "#c9c9c9"

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Distribution:
    """Scores of one method.

    Attributes:
        method: key of its colour.
        label: name in the legend.
        genuine, impostor: cosine similarities [n], [m].
    """

    method: str
    label: str
    genuine: NDArray[np.float64]
    impostor: NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title and the methods' distributions."""

    title: str
    distributions: tuple[Distribution, ...]


@dataclass(frozen=True)
class Tile:
    """One image of a grid; `image` None leaves the place empty.

    Attributes:
        image: uint8 [h, w, 3] RGB.
        caption: text under the image.
        framed: draw a frame (a photograph among generated images).
    """

    image: Image | None
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class GridRow:
    """One row of images.

    Attributes:
        label: text at the left, upright.
        tiles: the images, left-aligned.
        headers: text above each image, wrapped to its width; may be empty.
    """

    label: str
    tiles: tuple[Tile, ...]
    headers: tuple[str, ...] = ()


def colour_of(method: str, methods: Sequence[str], own: Mapping[str, str]) -> str:
    """Colour of a method; methods without one get the spare colours in turn."""
    known = {**COLOURS, **own}
    unknown = [name for name in methods if name not in known]
    spare = {name: SPARE_COLOURS[index % len(SPARE_COLOURS)] for index, name in enumerate(unknown)}
    return known.get(method) or spare[method]


def distributions_figure(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    *,
    width: float,
    bins: int,
    colours: Mapping[str, str],
    judge: str = "",
) -> Figure:
    """Genuine (filled) and impostor (dashed) densities of every method.

    Args:
        rows: (row label, panels); all rows have equally many panels.
        width: inches.
        bins: bins over the common range of all scores.
        colours: colours per method beside the built-in ones.
        judge: name of the recogniser, for the axis.
    """
    panels = [panel for _, row in rows for panel in row]
    methods = list(dict.fromkeys(d.method for panel in panels for d in panel.distributions))
    labels = {d.method: d.label for panel in panels for d in panel.distributions}
    every = np.concatenate(
        [s for panel in panels for d in panel.distributions for s in (d.genuine, d.impostor)]
    )
    edges = np.linspace(np.floor(every.min() * 10) / 10, min(every.max() + 0.02, 1.0), bins + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.35 * len(rows) + 0.75), layout="constrained")
        axes = figure.subplots(len(rows), len(rows[0][1]), squeeze=False, sharex=True, sharey="row")
        for row_axes, (label, row) in zip(axes, rows, strict=True):
            for axis, panel in zip(row_axes, row, strict=True):
                for distribution in panel.distributions:
                    colour = colour_of(distribution.method, methods, colours)
                    _densities(axis, distribution, edges, colour)
                axis.set_yticks([])
                axis.spines["left"].set_visible(False)
                axis.set_ylim(bottom=0)
            row_axes[0].set_ylabel(label)
        for axis, panel in zip(axes[0], rows[0][1], strict=True):
            axis.set_title(panel.title)
        for axis in axes[-1]:
            axis.set_xlabel(f"cosine similarity, {judge}" if judge else "cosine similarity")
        handles = [
            Line2D([], [], color=colour_of(method, methods, colours), lw=2, label=labels[method])
            for method in methods
        ]
        handles.append(Line2D([], [], color="#444444", lw=1.2, label="genuine"))
        handles.append(Line2D([], [], color="#444444", lw=1.0, ls=(0, (3, 1.5)), label="impostor"))
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles) if len(handles) <= 6 else (len(handles) + 1) // 2,
            frameon=False,
            handlelength=1.5,
            columnspacing=1.0,
        )
    return figure


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


def _densities(
    axis: Axes, distribution: Distribution, edges: NDArray[np.float64], colour: str
) -> None:
    genuine, _ = np.histogram(distribution.genuine, edges, density=True)
    impostor, _ = np.histogram(distribution.impostor, edges, density=True)
    centres = (edges[1:] + edges[:-1]) / 2
    axis.fill_between(centres, genuine, color=colour, alpha=0.16, linewidth=0)
    axis.plot(centres, genuine, color=colour, lw=1.2)
    axis.plot(centres, impostor, color=colour, lw=0.9, ls=(0, (3, 1.5)))


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
