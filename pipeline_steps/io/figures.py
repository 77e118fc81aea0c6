"""How every figure looks and is written: one Matplotlib style, and files without dates.

Figures are built without pyplot's global state, so equal inputs give equal files on one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pipeline_steps.io.atomic import atomic_path

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so it is there everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "consented-faces",
}


def save_figure(figure: Figure, path: Path, *, dpi: int = 200) -> None:
    """Write an SVG or PNG file, by the path's ending; without dates or program versions inside."""
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}[path.suffix]
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=metadata)
