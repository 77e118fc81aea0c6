"""Fill a study's tables and pictures into README.md and docs/results.md.

In:  a finished study: its tables/*.csv, provenance.json and figures/{samples,distributions}.png.
Out: both pages, in which the text between `<!-- table:NAME -->` and the next `<!-- /table -->` is
     replaced; everything else stays. docs/images/{samples,distributions}.webp: the figures,
     smaller. Filling twice changes nothing.

Example:
    python docs/fill_tables.py --study results/demo --date 2026-11-22 --hardware "2 cores, no GPU"
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pipeline_steps.evidence.names import SETS, Names, order_key, sorted_groups
from pipeline_steps.evidence.scores.identity import COMPARISON_COLUMNS
from pipeline_steps.evidence.tables.kinds import KINDS, average_accuracy, tables_of
from pipeline_steps.evidence.tables.table import (
    Column,
    Estimate,
    lay_out,
    minus,
    pipe_table,
    to_markdown,
)
from pipeline_steps.io.atomic import atomic_path, write_text
from pipeline_steps.io.tables import read_csv
from pipeline_steps.naming import REAL, UNTUNED, WILD
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.source import NOT_APPLICABLE

ROOT = Path(__file__).resolve().parents[1]
NAMES = Names({REAL: "photographs", WILD: "in the wild", UNTUNED: "untuned"})
MARKED = r"(<!-- table:{name} -->\n).*?(<!-- /table -->)"
# Tables of each page.
README_TABLES = ("summary", "measured")
RESULTS_TABLES = ("measured", "quality", "identity", "comparison", "recognition", "timing")
# Figures and their width on the page, pixels.
PICTURES = {"samples": 900, "distributions": 900}
WEBP_QUALITY = 85
# The corridor's order; steps not named here come after, by name.
STEPS = (
    *("render_demo_world", "prepare", "embed", "prior", "finetune", "sample", "gather"),
    *("align", "features", "score", "recognise", "verify"),
    *("tables", "figures", "provenance", "report"),
)
# Without marks: of few people an order is no finding.
SUMMARY = (
    Column("fid", "FD photographs ↓", digits=2),
    Column("eer", "EER vs real ↓"),
    Column("fdr", "FDR vs real ↑", digits=2),
    Column("average", "Recognition ↑"),
)


def run(
    *,
    study: Path,
    date: str,
    hardware: str,
    readme: Path = ROOT / "README.md",
    results: Path = ROOT / "docs" / "results.md",
    images: Path = ROOT / "docs" / "images",
) -> None:
    """Fill both pages.

    Args:
        study: Folder of a finished study.
        date: Day of the measurement.
        hardware: Machine of the measurement.
        readme: Page with the summary.
        results: Page with all tables.
        images: Folder of the pages' pictures.
    """
    tables = study_tables(study, date=date, hardware=hardware)
    for page, names in ((readme, README_TABLES), (results, RESULTS_TABLES)):
        text = page.read_text(encoding="utf-8")
        write_text(page, fill(text, {name: tables[name] for name in names}))
    write_pictures(study / "figures", images)


def fill(document: str, tables: Mapping[str, str]) -> str:
    """The document with each named table between its markers.

    Raises:
        StepError: a marker is missing or occurs twice.
    """
    for name, table in tables.items():
        pattern = re.compile(MARKED.format(name=re.escape(name)), re.DOTALL)
        if len(pattern.findall(document)) != 1:
            raise StepError(
                f"expected <!-- table:{name} --> on a line of its own, then <!-- /table -->, once"
            )
        (found,) = pattern.finditer(document)
        document = f"{document[: found.end(1)]}{table}\n{document[found.start(2) :]}"
    return document


def study_tables(study: Path, *, date: str, hardware: str) -> dict[str, str]:
    """All tables of a finished study, as Markdown by name.

    Raises:
        StepError: a file is missing, or lacks a column.
    """
    folder = study / "tables"
    provenance = read_provenance(study / "provenance.json")
    frames = {name: read_csv(folder / f"{name}.csv", kind.columns) for name, kind in KINDS.items()}
    shown = {
        name: "\n".join(to_markdown(table, intervals=True) for table in tables).strip()
        for name, tables in tables_of(frames, NAMES).items()
    }
    of = provenance.get("code") or {}
    code = f", code revision `{of['revision'][:12]}`" if of else ""
    if changed := len(of.get("changed_files", ())):
        code += f", files changed since: {changed}"
    return shown | {
        "measured": f"Measured on {date}, {hardware}{code}.",
        "summary": summary(frames),
        "comparison": comparison(read_csv(folder / "comparison.csv", COMPARISON_COLUMNS)),
        "timing": timing(provenance["steps"]),
    }


def summary(frames: Mapping[str, pd.DataFrame]) -> str:
    """One row per method: the last prompt set, and the last judge, where the independent one is."""
    identity, quality = frames["identity"], frames["quality"]
    prompts, judge = max(identity["prompts"], key=order_key), identity["recogniser"].iloc[-1]
    shown = identity["prompts"].isin([prompts, NOT_APPLICABLE]) & (identity["versus"] == "real")
    rows = identity[shown & (identity["recogniser"] == judge)]
    averages = [
        dict(zip(SETS, key, strict=True))
        | {"average": average.value, "average_low": average.low, "average_high": average.high}
        for key, own in sorted_groups(frames["recognition"], SETS)
        if (average := average_accuracy(own)) is not None
    ]
    averaged = pd.DataFrame(averages, columns=[*SETS, "average", "average_low", "average_high"])
    distances = quality.loc[quality["reference"] == REAL, [*SETS, "fid", "fid_low", "fid_high"]]
    for other in (distances, averaged):
        rows = rows.merge(other, on=list(SETS), how="left")
    caption = f"Prompts: {NAMES(prompts)}. Judge of EER and FDR: {NAMES(judge)}."
    by = ("base_model", "method")
    table = lay_out("summary", caption, rows, SUMMARY, NAMES, by=by)
    return to_markdown(table, intervals=True).strip()


def comparison(frame: pd.DataFrame) -> str:
    """Paired differences of the Fisher ratio; bold where the interval leaves out zero."""
    frame = frame[frame["metric"] == "fdr"]
    pairs = list(dict.fromkeys(zip(frame["method"], frame["minus_method"], strict=True)))
    rows = []
    for key, part in sorted_groups(frame, ["recogniser", "base_model", "prompts", "versus"]):
        shown = dict.fromkeys(pairs, "")
        for _, row in part.iterrows():
            difference = Estimate(float(row["difference"]), float(row["low"]), float(row["high"]))
            text = minus(difference.text(2))
            bold = "**" if difference.beyond(0.0) else ""
            shown[row.method, row.minus_method] = f"{bold}{text}{bold}"
        rows.append([*map(NAMES, key[:3]), key[3], *shown.values()])
    titles = [f"{NAMES(a)} {minus('-')} {NAMES(b)}" for a, b in pairs]
    return pipe_table(["Judge", "Base model", "Prompts", "Compared with", *titles], rows, texts=4)


def timing(steps: Mapping[str, Mapping[str, float]]) -> str:
    """Jobs, summed wall and processor time, and largest memory of each step."""
    keys = ["jobs", "wall_seconds", "processor_seconds", "memory_mib"]
    order = [step for step in STEPS if step in steps] + sorted(set(steps) - set(STEPS))
    frame = pd.DataFrame([dict(steps[step]) for step in order])[keys]
    frame.index = [f"`{step}`" for step in order]
    frame.loc["all"] = frame.agg(dict.fromkeys(keys[:3], "sum") | {"memory_mib": "max"})
    rows = [[str(step), *(f"{number:.0f}" for number in row)] for step, *row in frame.itertuples()]
    heads = ["Step", "Jobs", "Wall time, s", "Processor time, s", "Largest memory of a job, MiB"]
    return pipe_table(heads, rows, texts=1)


def read_provenance(path: Path) -> dict[str, Any]:
    """A study's provenance.json.

    Raises:
        StepError: it is missing, or holds no step.
    """
    try:
        provenance: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StepError(f"{path} cannot be read ({error}): finish the study first") from error
    if not provenance.get("steps"):
        raise StepError(f"{path} holds no measured step: finish the study first")
    return provenance


def write_pictures(figures: Path, folder: Path) -> None:
    """The study's figures as WebP files that a page loads quickly.

    Raises:
        StepError: a figure is missing.
    """
    for name, width in PICTURES.items():
        source = figures / f"{name}.png"
        if not source.is_file():
            raise StepError(f"{source} is missing: finish the study first")
        with Image.open(source) as image:
            size = (width, round(image.height * width / image.width))
            picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        with atomic_path(folder / f"{name}.webp") as temporary:
            picture.save(temporary, quality=WEBP_QUALITY, method=6)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
