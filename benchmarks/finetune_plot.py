"""The picture of `finetune.py`'s results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import atomic_path

# ms per identity-step, from docs/performance.md: DreamBooth, methods with an identity term.
FLOOR = {"sd21": (4.5, 11.0), "sdxl": (36.7, 64.3)}
MLPERF_SHARE = 0.40  # of peak, SD-2-base, full fine-tuning, 8 x H200 (MLPerf Training v4.0)
COLOURS = {"fleet": "#3b6ea5", "reference": "#c9c9c9"}


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Bars of milliseconds per identity-step of each measured device, one panel each."""
    from matplotlib.figure import Figure

    devices = [device for device in ("cpu", "cuda") if device in results]
    figure = Figure(figsize=(4.2 * len(devices) + 1.5, 3.4), layout="constrained")
    for axes, device in zip(
        figure.subplots(1, len(devices), squeeze=False)[0], devices, strict=True
    ):
        rows = [row for row in results[device]["rows"] if row["fleet_ms"] is not None]
        for i, row in enumerate(rows):
            axes.bar(i - 0.2, row["reference_ms"], 0.4, color=COLOURS["reference"])
            axes.bar(i + 0.2, row["fleet_ms"], 0.4, color=COLOURS["fleet"])
            axes.text(i + 0.2, row["fleet_ms"], f"{row['ratio']:.1f}x", ha="center", va="bottom")
            floors = FLOOR.get(row["model"])
            if floors:
                floor = floors[row["method"] != "dreambooth"]
                axes.hlines(floor, i - 0.4, i + 0.4, colors="black")
                axes.hlines(floor / MLPERF_SHARE, i - 0.4, i + 0.4, colors="black", linestyles=":")
        axes.set_xticks(
            range(len(rows)),
            [f"{r['model']} {r['method']}\nK = {r['identities']}" for r in rows],
            rotation=0 if len(rows) < 4 else 90,
        )
        axes.set_ylabel("ms per identity and step")
        axes.set_title(results[device]["hardware"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    names = ("plain loop", "fleet, K identities at once")
    handles = [figure.axes[0].bar(0, 0, color=colour) for colour in reversed(COLOURS.values())]
    figure.axes[0].legend(handles, names, frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."))
