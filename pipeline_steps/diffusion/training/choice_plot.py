"""The trade-off of one identity's fine-tuning: similarity and diversity over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pipeline_steps.io.figures import STYLE, save_figure


def draw_choice(path: Path, identity: str, choice: Mapping[str, Any], min_diversity: float) -> None:
    """Write an SVG of what was tried and chosen.

    Args:
        path: The file.
        identity: For the title.
        choice: As ``training.json`` has it: trials, chosen.
        min_diversity: Least share of the untuned model's diversity.
    """
    trials = choice["trials"]
    steps = [trial["step"] for trial in trials]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained")
        left = figure.subplots()
        right = left.twinx()
        left.plot(steps, [trial["similarity"] for trial in trials], "o-", color="#0072B2", ms=3)
        right.plot(steps, [trial["diversity"] for trial in trials], "s--", color="#D55E00", ms=3)
        right.axhline(min_diversity * trials[0]["diversity"], color="#D55E00", lw=0.6, ls=":")
        left.axvline(choice["chosen"], color="#8c8c8c", lw=0.8, zorder=0)
        left.set_xlabel("step")
        left.set_ylabel("similarity to held-out photographs", color="#0072B2")
        right.set_ylabel("diversity (dotted: least)", color="#D55E00")
        right.set_ylim(bottom=0)
        right.spines["right"].set_visible(True)
        left.set_title(f"{identity}: step {choice['chosen']} is kept")
        save_figure(figure, path)
