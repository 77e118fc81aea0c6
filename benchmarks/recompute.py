"""Recompute a study's tables from its images: python benchmarks/recompute.py results/<study>

To be run in the project's folder, before tables are published. Every cell of quality.csv,
identity.csv, comparison.csv, pose.csv, recognition.csv and audit.csv is computed once more, by code
that shares nothing with the pipeline but the networks and the list of where results lie (folder
recomputed/): from the aligned images
and the benchmark files to features, and from features to numbers. Aligned images are held against
their sources. Settings and seed come from config/ of the study.

A number agrees when it differs by less than 1e-5 of itself, or by less than 1e-6; counts and words
have to be equal. Numbers are computed from the features that the pipeline stored, after these were
compared with those of the images; with --own-features from the latter, so that no file between
images and tables is used at all. Features of another machine differ by rounding, which may move a
rate by a pair.

Not recomputed, and listed: what would need more than --largest numbers in one matrix, and columns
that nobody wrote a second time, see docs/adding-a-metric.md. Not recomputed either: intervals
without --intervals, which take minutes for a small study and hours for a large one.

Exit status: 0 all agree, 1 something differs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recomputed.rows import (
    KEYS,
    audit_rows,
    comparison_rows,
    identity_rows,
    pose_rows,
    quality_rows,
    recognition_rows,
)
from recomputed.sources import realigned
from recomputed.study import Study

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main

Row = dict[str, Any]
RELATIVE, ABSOLUTE = 1e-5, 1e-6
INTERVALS = ("fid_low", "fid_high", "eer_low", "eer_high", "fdr_low", "fdr_high", "low", "high")


def compare(study: Study, table: str, rows: Sequence[Row]) -> int:
    """Hold recomputed rows against a table; returns the number of cells that were compared."""
    path = study.table(table)
    told = pd.read_csv(path, keep_default_na=False, na_values=[""]).to_dict("records")
    keys = KEYS[table]
    found = {tuple(str(row[key]) for key in keys): row for row in rows}
    named = {tuple(str(row[key]) for key in keys): row for row in told}
    for key in sorted(named.keys() ^ found.keys()):
        study.problems.append(f"{table}.csv: row {' '.join(key)} is on one side only")
    cells, unknown = 0, set[str]()
    for key in [key for key in named if key in found]:
        for column, value in found[key].items():
            cells += 1
            if not agrees(named[key][column], value):
                study.problems.append(
                    f"{table}.csv: {' '.join(key)}: {column} reads {named[key][column]}, "
                    f"recomputed {value}"
                )
        if len(found[key]) > len(keys):
            unknown |= set(map(str, named[key])) - set(map(str, found[key]))
    unknown -= {"sentence", "reasons", *(() if study.intervals else INTERVALS)}
    study.left_out += [f"{table}.csv: column {column}" for column in sorted(unknown)]
    return cells


def agrees(told: Any, value: Any) -> bool:
    """Whether a cell holds the recomputed value."""
    if isinstance(value, str):
        return bool(told == value)
    if math.isnan(value) or not isinstance(told, (int, float)) or math.isnan(told):
        return math.isnan(value) and bool(pd.isna(told))
    if isinstance(value, (int, np.integer)):
        return bool(told == value)
    return abs(told - float(value)) <= max(RELATIVE * abs(float(value)), ABSOLUTE)


def run(study: Study) -> dict[str, int]:
    """Compare all tables; returns the compared cells of each."""
    if not study.table("quality").is_file():
        raise StepError(f"{study.root} holds no tables: name results/<study> of a finished study")
    for name, images in study.sets.items():
        study.problems += [f"aligned/{name}: {what}" for what in realigned(study, name, images)]
    identity, draws = identity_rows(study)
    tables: dict[str, Callable[[], list[Row]]] = {
        "quality": lambda: quality_rows(study),
        "identity": lambda: identity,
        "comparison": lambda: comparison_rows(study, identity, draws),
        "pose": lambda: pose_rows(study),
        "recognition": lambda: recognition_rows(study),
        "audit": lambda: audit_rows(study),
    }
    return {
        table: compare(study, table, rows())
        for table, rows in tables.items()
        if study.table(table).is_file()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results/<study>")
    parser.add_argument("--own-features", action="store_true", help="use no stored feature")
    parser.add_argument("--intervals", action="store_true", help="recompute intervals as well")
    parser.add_argument(
        "--images", type=int, help="recompute features of so many images of each set; default: all"
    )
    parser.add_argument(
        "--largest", type=float, default=5e6, help="entries of a matrix (default 5e6)"
    )
    told = parser.parse_args(argv)
    study = Study(told.results, told.own_features, told.intervals, told.images, int(told.largest))
    cells = run(study)
    for what in study.left_out:
        print(f"not recomputed: {what}")
    for what in study.problems:
        print(f"DIFFERS {what}")
    compared = ", ".join(f"{table} {count}" for table, count in cells.items())
    print(f"{sum(cells.values())} cells compared ({compared}), {len(study.problems)} differ")
    return 1 if study.problems else 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
