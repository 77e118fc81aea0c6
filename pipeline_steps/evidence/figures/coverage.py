"""Coverage of head poses and of the attributes that prompts name, as figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline_steps.evidence.figures.gallery import Gallery
from pipeline_steps.evidence.figures.plots import colour_of
from pipeline_steps.io.figures import STYLE
from pipeline_steps.naming import natural_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the prompt sets name; the first group that matched is the value.
ATTRIBUTES = {
    "expression": r"(\w+) expression",
    "place": r"busy ([\w ]+) environment|, ([\w ]+) background",
    "view": r"face (side-portrait|portrait) photo",
}
NOT_NAMED = "none"
REAL_COLOUR = "#d3d8dd"
Z95 = 1.96


@dataclass(frozen=True)
class PoseCloud:
    """Head poses of one set of images.

    Attributes:
        method: key of its colour.
        label: title of its panel.
        yaw, pitch: degrees [n].
    """

    method: str
    label: str
    yaw: NDArray[np.float32]
    pitch: NDArray[np.float32]


def pose_figure(
    rows: Sequence[tuple[str, Sequence[PoseCloud]]],
    real: PoseCloud,
    *,
    width: float,
    colours: Mapping[str, str],
) -> Figure:
    """Yaw and pitch of every image, over those of the photographs; a row per setting.

    Args:
        rows: (row label, clouds), all of equal length.
        real: the photographs, grey behind each cloud.
        width: inches.
        colours: colours per method beside the built-in ones.
    """
    clouds = [cloud for _, row in rows for cloud in row]
    methods = list(dict.fromkeys(cloud.method for cloud in clouds))
    n_columns = max(len(row) for _, row in rows)
    with matplotlib.rc_context(STYLE):
        side = (width - 0.5) / n_columns
        figure = Figure(figsize=(width, (0.8 * side + 0.2) * len(rows) + 0.35))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(len(rows), n_columns, squeeze=False, sharex=True, sharey=True)
        for row_axes, (label, row) in zip(axes, rows, strict=True):
            for axis in row_axes[len(row) :]:
                axis.set_visible(False)
            for axis, cloud in zip(row_axes, row, strict=False):
                _cloud(axis, real, REAL_COLOUR)
                _cloud(axis, cloud, colour_of(cloud.method, methods, colours))
                axis.set_title(cloud.label)
                spread = f"σ {cloud.yaw.std():.0f}° × {cloud.pitch.std():.0f}°"
                axis.text(0.03, 0.03, spread, transform=axis.transAxes, fontsize=6.5)
            row_axes[0].set_ylabel(f"{label}\npitch in degrees")
        for axis in axes[-1]:
            axis.set_xlabel("yaw in degrees")
    return figure


def attribute_rows(
    prompts: Sequence[str], similarity: NDArray[np.float64], patterns: Mapping[str, str]
) -> pd.DataFrame:
    """What each image was asked to show, and how well it then shows the person.

    Args:
        prompts: the prompt of each image [n].
        similarity: mean similarity to the person's photographs [n]; NaN: no face was found.
        patterns: attribute to a regular expression; its first group that matched is the value.

    Returns:
        Rows of attribute, value, n, faces (share of images with a face), similarity (mean) and
        half_width (of the 95 % interval of that mean, by images). Attributes that no prompt names
        are left out; where only some do, the others have the value "none".
    """
    found = []
    for attribute, pattern in patterns.items():
        matches = [re.search(pattern, prompt) for prompt in prompts]
        if not any(matches):
            continue
        values = np.array([_group(match) if match else NOT_NAMED for match in matches])
        for value in sorted(set(values.tolist()), key=lambda v: (v != NOT_NAMED, natural_key(v))):
            own = similarity[values == value]
            faces = own[~np.isnan(own)]
            deviation = float(faces.std(ddof=1)) if len(faces) > 1 else float("nan")
            found.append(
                {
                    "attribute": attribute,
                    "value": value,
                    "n": len(own),
                    "faces": len(faces) / len(own),
                    "similarity": float(faces.mean()) if len(faces) else float("nan"),
                    "half_width": Z95 * deviation / np.sqrt(max(len(faces), 1)),
                }
            )
    columns = ["attribute", "value", "n", "faces", "similarity", "half_width"]
    return pd.DataFrame(found, columns=columns)


def attribute_tables(
    gallery: Gallery, methods: Sequence[str], patterns: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """:func:`attribute_rows` of each method over all its base models and prompt sets."""
    tables = {}
    for method in methods:
        found = [gallery.similarities(s) for s in gallery.samples if s.method == method]
        frame = pd.concat(found)
        tables[method] = attribute_rows(
            frame["prompt"].tolist(), frame["similarity"].to_numpy(), patterns
        )
    return tables


def attributes_figure(
    tables: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    *,
    width: float,
    colours: Mapping[str, str],
) -> Figure:
    """Similarity to the person and share of images with a face, per named attribute and method.

    Args:
        tables: method to :func:`attribute_rows`.
        labels: method to its name in the legend.
        width: inches.
        colours: colours per method beside the built-in ones.
    """
    every = pd.concat(tables.values())
    attributes = list(dict.fromkeys(every["attribute"]))
    with matplotlib.rc_context(STYLE):
        if not attributes:
            figure = Figure(figsize=(width, 0.6))
            figure.text(0.5, 0.5, "The prompts name no attribute.", ha="center", va="center")
            return figure
        values = {
            attribute: list(dict.fromkeys(every.loc[every["attribute"] == attribute, "value"]))
            for attribute in attributes
        }
        heights = [len(values[attribute]) + 0.8 for attribute in attributes]
        figure = Figure(figsize=(width, 0.19 * sum(heights) + 0.75), layout="constrained")
        axes = figure.subplots(
            len(attributes),
            2,
            squeeze=False,
            sharex="col",
            sharey="row",
            height_ratios=heights,
            width_ratios=[3, 1],
        )
        for (left, right), attribute in zip(axes, attributes, strict=True):
            _attribute(left, right, tables, attribute, values[attribute], colours)
        axes[-1][0].set_xlabel("similarity to the person’s photographs, mean and 95 % interval")
        axes[-1][1].set_xlabel("images with a face")
        axes[-1][1].set_xlim(0, 1.05)
        handles = [
            Line2D(
                [],
                [],
                marker="o",
                ls="",
                ms=4,
                color=colour_of(method, list(tables), colours),
                label=label,
            )
            for method, label in labels.items()
        ]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
    return figure


def _attribute(
    left: Axes,
    right: Axes,
    tables: Mapping[str, pd.DataFrame],
    attribute: str,
    values: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    for position, (method, table) in enumerate(tables.items()):
        colour = colour_of(method, list(tables), colours)
        rows = table[table["attribute"] == attribute].set_index("value").reindex(list(values))
        # Methods stand beside each other within a value's line.
        y = np.arange(len(values)) + 0.7 * ((position + 0.5) / len(tables) - 0.5)
        left.errorbar(
            rows["similarity"], y, xerr=rows["half_width"], fmt="o", ms=3, lw=0.8, color=colour
        )
        right.plot(rows["faces"], y, "o", ms=3, color=colour)
    left.set_yticks(range(len(values)), values)
    left.set_ylim(len(values) - 0.5, -0.5)
    left.set_title(attribute.capitalize(), loc="left")
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", color="#eeeeee", lw=0.6)
        axis.set_axisbelow(True)


def _cloud(axis: Axes, cloud: PoseCloud, colour: str) -> None:
    # Dots of thousands of images would make a vector file of megabytes.
    axis.scatter(cloud.yaw, cloud.pitch, s=3, color=colour, alpha=0.7, lw=0, rasterized=True)


def _group(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), match[0])
