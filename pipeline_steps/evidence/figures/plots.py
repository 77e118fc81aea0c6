"""Plots from arrays: similarity distributions, head poses, and what prompts asked for.

All take the methods' names and colours, method -> text, in the order of the legend, and the width
in inches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline_steps.evidence.names import WORST_TO_BEST
from pipeline_steps.io.figures import STYLE
from pipeline_steps.naming import natural_key

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]  # genuine [n], impostor [m]

# What the prompt sets name; the first group that matched is the value.
ATTRIBUTES = {
    "expression": r"(\w+) expression",
    "place": r"busy ([\w ]+) environment|, ([\w ]+) background",
    "view": r"face (side-portrait|portrait) photo",
}
ATTRIBUTE_COLUMNS = ["attribute", "value", "n", "faces", "similarity", "half_width"]
MEASURE_AXES = {
    "prompt_score": "prompt score",
    "reference_distance": "distance to photographs",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
}
GROUP_AXES = {"fnmr": "FNMR", "eer": "EER", "faces": "images with a face"}
NOT_NAMED = "none"
REAL_COLOUR = "#d3d8dd"
DASHES = (0, (3, 1.5))
Z95 = 1.96


def distributions_figure(
    rows: Mapping[str, Mapping[str, Mapping[str, Scores]]],
    *,
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    width: float,
    bins: int,
    judge: str = "",
) -> Figure:
    """Genuine (filled) and impostor (dashed) densities of every method.

    Args:
        rows: row label to panel title to method to its cosine similarities; all rows have the same
            panels.
        bins: bins over the common range of all scores.
        judge: name of the recogniser, for the axis.
    """
    panels = [panel for row in rows.values() for panel in row.values()]
    every = np.concatenate([part for panel in panels for pair in panel.values() for part in pair])
    every = every if len(every) else np.zeros(1)
    edges = np.linspace(np.floor(every.min() * 10) / 10, min(every.max() + 0.02, 1.0), bins + 1)
    titles = list(next(iter(rows.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.35 * len(rows) + 0.75), layout="constrained")
        axes = figure.subplots(len(rows), len(titles), squeeze=False, sharex=True, sharey="row")
        for row_axes, (label, row) in zip(axes, rows.items(), strict=True):
            for axis, panel in zip(row_axes, row.values(), strict=True):
                for method, scores in panel.items():
                    _densities(axis, scores, edges, colours[method])
                axis.set_yticks([])
                axis.spines["left"].set_visible(False)
                axis.set_ylim(bottom=0)
            row_axes[0].set_ylabel(label)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        for axis in axes[-1]:
            axis.set_xlabel(f"cosine similarity, {judge}" if judge else "cosine similarity")
        handles = [
            Line2D([], [], color=colours[method], lw=2, label=label)
            for method, label in labels.items()
        ]
        handles.append(Line2D([], [], color="#444444", lw=1.2, label="genuine"))
        handles.append(Line2D([], [], color="#444444", lw=1.0, ls=DASHES, label="impostor"))
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=_columns(len(handles)),
            frameon=False,
            handlelength=1.5,
            columnspacing=1.0,
        )
    return figure


def pose_figure(
    rows: Mapping[str, Mapping[str, NDArray[np.float32]]],
    real: NDArray[np.float32],
    *,
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    width: float,
) -> Figure:
    """Yaw and pitch of every image, over those of the photographs; a row per setting.

    Args:
        rows: row label to method to pitch, yaw and roll in degrees [n, 3].
        real: the same of the photographs, grey behind each cloud.
    """
    n_columns = max(map(len, rows.values()))
    with matplotlib.rc_context(STYLE):
        side = (width - 0.5) / n_columns
        figure = Figure(figsize=(width, (0.8 * side + 0.2) * len(rows) + 0.35))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(len(rows), n_columns, squeeze=False, sharex=True, sharey=True)
        for row_axes, (label, row) in zip(axes, rows.items(), strict=True):
            for axis in row_axes[len(row) :]:
                axis.set_visible(False)
            for axis, (method, angles) in zip(row_axes, row.items(), strict=False):
                for cloud, colour in ((real, REAL_COLOUR), (angles, colours[method])):
                    # As vectors, the dots of thousands of images would make a file of megabytes.
                    dots: dict[str, Any] = {"s": 3, "alpha": 0.7, "lw": 0, "rasterized": True}
                    axis.scatter(cloud[:, 1], cloud[:, 0], color=colour, **dots)
                axis.set_title(labels[method])
                if not len(angles):
                    continue
                spread = f"σ {angles[:, 1].std():.0f}° × {angles[:, 0].std():.0f}°"
                axis.text(0.03, 0.03, spread, transform=axis.transAxes, fontsize=6.5)
            row_axes[0].set_ylabel(f"{label}\npitch in degrees")
        for axis in axes[-1]:
            axis.set_xlabel("yaw in degrees")
    return figure


def attribute_rows(images: pd.DataFrame, patterns: Mapping[str, str]) -> pd.DataFrame:
    """What each image was asked to show, and how well it then shows the person.

    Args:
        images: see `Gallery.similarities`.
        patterns: attribute to a regular expression; its first group that matched is the value.

    Returns:
        Rows of attribute, value, n, faces (share of images with a face), similarity (mean) and
        half_width (of the 95 % interval of that mean, by images). Attributes that no prompt names
        are left out; where only some do, the others have the value "none".
    """
    found = []
    for attribute, pattern in patterns.items():
        matches = [re.search(pattern, prompt) for prompt in images["prompt"]]
        if not any(matches):
            continue
        values = np.array([_group(match) if match else NOT_NAMED for match in matches])
        for value in sorted(set(values.tolist()), key=lambda v: (v != NOT_NAMED, natural_key(v))):
            own = images[values == value]
            known = own["similarity"].dropna()
            mean, deviation = float(known.mean()), float(known.std(ddof=1))
            half_width = Z95 * deviation / np.sqrt(max(len(known), 1))
            share = float(own["face"].mean())
            found.append((attribute, value, len(own), share, mean, half_width))
    return pd.DataFrame(found, columns=ATTRIBUTE_COLUMNS)


def attributes_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    width: float,
) -> Figure:
    """Similarity to the person and share of images with a face, per named attribute and method.

    `tables`: method to :func:`attribute_rows`.
    """
    every = pd.concat(tables.values())
    values = {
        attribute: list(dict.fromkeys(rows["value"]))
        for attribute, rows in every.groupby("attribute", sort=False)
    }
    with matplotlib.rc_context(STYLE):
        if not values:
            return _only_text("The prompts name no attribute.", width)
        heights = [len(named) + 0.8 for named in values.values()]
        figure = Figure(figsize=(width, 0.19 * sum(heights) + 0.75), layout="constrained")
        axes = figure.subplots(
            len(values),
            2,
            squeeze=False,
            sharex="col",
            sharey="row",
            height_ratios=heights,
            width_ratios=[3, 1],
        )
        for pair, (attribute, named) in zip(axes, values.items(), strict=True):
            _attribute(pair, tables, str(attribute), named, colours)
        axes[-1][0].set_xlabel("similarity to the person’s photographs, mean and 95 % interval")
        axes[-1][1].set_xlabel("images with a face")
        axes[-1][1].set_xlim(0, 1.05)
        _legend(figure, labels, colours)
    return figure


def groups_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    width: float,
) -> Figure:
    """Error rates and share of images with a face, with intervals, per group of people and method.

    `tables`: method, or "-" of the photographs, to rows of groups.csv by one judge.
    """
    labels, colours = {"-": "photographs", **labels}, {"-": "#444444", **colours}
    every = pd.concat(tables.values()) if tables else pd.DataFrame(columns=["by", "group", "faces"])
    every = every[(every["group"] != WORST_TO_BEST) & every["faces"].notna()]
    groups = {
        by: list(dict.fromkeys(rows["group"])) for by, rows in every.groupby("by", sort=False)
    }
    with matplotlib.rc_context(STYLE):
        if not groups:
            return _only_text("No group has people enough for numbers.", width)
        heights = [len(names) + 0.8 for names in groups.values()]
        figure = Figure(figsize=(width, 0.25 * sum(heights) + 0.75), layout="constrained")
        axes = figure.subplots(
            len(groups), 3, squeeze=False, sharex="col", sharey="row", height_ratios=heights
        )
        for line, (by, names) in zip(axes, groups.items(), strict=True):
            for axis, key in zip(line, GROUP_AXES, strict=True):
                for position, (method, table) in enumerate(tables.items()):
                    rows = table[table["by"] == by].set_index("group").reindex(names)
                    y = np.arange(len(names)) + 0.7 * ((position + 0.5) / len(tables) - 0.5)
                    low, high = rows[key] - rows[f"{key}_low"], rows[f"{key}_high"] - rows[key]
                    dot: dict[str, Any] = {"ms": 3, "color": colours[method], "lw": 0.8}
                    axis.errorbar(rows[key], y, xerr=[low, high], fmt="o", **dot)
            _lines(line, names, str(by).replace("_", " ").capitalize())
        for axis, title in zip(axes[-1], GROUP_AXES.values(), strict=True):
            axis.set_xlabel(title)
        _legend(figure, {method: labels[method] for method in tables}, colours)
    return figure


def measures_figure(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    width: float,
) -> Figure:
    """Prompt score and nearness to the photographs of every method, a line per setting.

    `rows`: row label to method to the measures of MEASURE_AXES; NaN or none: no dot.
    """
    with matplotlib.rc_context(STYLE):
        height = 0.13 * len(labels) * len(rows) + 1.0
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(MEASURE_AXES), squeeze=False, sharey=True)[0]
        for axis, (key, title) in zip(axes, MEASURE_AXES.items(), strict=True):
            for place, (method, colour) in enumerate(colours.items()):
                values = [row.get(method, {}).get(key, np.nan) for row in rows.values()]
                y = np.arange(len(rows)) + 0.7 * ((place + 0.5) / len(colours) - 0.5)
                axis.plot(values, y, "o", ms=3, color=colour)
            axis.set_xlabel(title)
        _lines(axes, list(rows), "")
        _legend(figure, labels, colours)
    return figure


def _densities(axis: Axes, scores: Scores, edges: NDArray[np.float64], colour: str) -> None:
    genuine, impostor = (
        np.histogram(part, edges, density=True)[0] if len(part) else np.zeros(len(edges) - 1)
        for part in scores
    )
    centres = (edges[1:] + edges[:-1]) / 2
    axis.fill_between(centres, genuine, color=colour, alpha=0.16, linewidth=0)
    axis.plot(centres, genuine, color=colour, lw=1.2)
    axis.plot(centres, impostor, color=colour, lw=0.9, ls=DASHES)


def _attribute(
    pair: Sequence[Axes],
    tables: Mapping[str, pd.DataFrame],
    attribute: str,
    values: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    left, right = pair
    for position, (method, table) in enumerate(tables.items()):
        rows = table[table["attribute"] == attribute].set_index("value").reindex(list(values))
        # Methods stand beside each other within a value's line.
        y = np.arange(len(values)) + 0.7 * ((position + 0.5) / len(tables) - 0.5)
        dot: dict[str, Any] = {"ms": 3, "color": colours[method]}
        left.errorbar(rows["similarity"], y, xerr=rows["half_width"], fmt="o", lw=0.8, **dot)
        right.plot(rows["faces"], y, "o", **dot)
    _lines(pair, values, attribute.capitalize())


def _lines(axes: Sequence[Axes], names: Sequence[str], title: str) -> None:
    """A line for each name, from the top down."""
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_title(title, loc="left")
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", color="#eeeeee", lw=0.6)
        axis.set_axisbelow(True)


def _legend(figure: Figure, labels: Mapping[str, str], colours: Mapping[str, str]) -> None:
    dot: dict[str, Any] = {"marker": "o", "ls": "", "ms": 4}
    handles = [
        Line2D([], [], color=colours[method], label=label, **dot)
        for method, label in labels.items()
    ]
    ncols = _columns(len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols, frameon=False)


def _columns(entries: int) -> int:
    """Of a legend, in one row or two."""
    return entries if entries <= 6 else (entries + 1) // 2


def _only_text(text: str, width: float) -> Figure:
    figure = Figure(figsize=(width, 0.6))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _group(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), match[0])
