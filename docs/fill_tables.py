"""Fill a study's tables into README.md.

In:  a finished study: tables/{quality,identity,recognition,comparison}.csv and provenance.json.
Out: README.md, in which the text between `<!-- table:NAME -->` and the next `<!-- /table -->` is
     replaced; everything else stays. Filling twice changes nothing.

Example:
    python docs/fill_tables.py --study results/demo --date 2026-11-22 --hardware "2 cores, no GPU"
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.comparison import COMPARISON_COLUMNS
from pipeline_steps.evidence.findings import Estimate, average_accuracy
from pipeline_steps.evidence.names import UNTUNED, Names, order_key
from pipeline_steps.evidence.scoring import IDENTITY_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.evidence.sources import REFERENCES
from pipeline_steps.evidence.tables_io import read_csv
from pipeline_steps.files.atomic import write_text
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.tables import RECOGNITION_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
NAMES = Names({"real": "photographs", "wild": "in the wild", UNTUNED: "untuned"})
MARKED = r"(<!-- table:{name} -->\n).*?(<!-- /table -->)"
# The corridor's order; steps not named here come after, by name.
STEPS = (
    *("render_demo_world", "prepare", "embed", "prior", "finetune", "sample", "gather"),
    *("align", "features", "score", "recognise", "verify"),
    *("tables", "figures", "provenance", "report"),
)
TITLES = {
    "frechet": "FD (Fréchet distance)",
    "cmmd": "MMD",
    "prdc": "precision and recall",
    "face_quality": "face quality",
}
MINUS = "\N{MINUS SIGN}"


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
        document = pattern.sub(lambda found, text=table: f"{found[1]}{text}\n{found[2]}", document)
    return document


def study_tables(study: Path, *, date: str, hardware: str) -> dict[str, str]:
    """All tables of a finished study, as Markdown by name.

    Raises:
        StepError: a file is missing, or lacks a column.
    """
    folder = study / "tables"
    provenance = read_provenance(study / "provenance.json")
    return {
        "measured": measured(provenance, date=date, hardware=hardware),
        "quality": quality(read_csv(folder / "quality.csv", QUALITY_COLUMNS)),
        "identity": identity(read_csv(folder / "identity.csv", IDENTITY_COLUMNS)),
        "comparison": comparison(read_csv(folder / "comparison.csv", COMPARISON_COLUMNS)),
        "recognition": recognition(read_csv(folder / "recognition.csv", RECOGNITION_COLUMNS)),
        "timing": timing(provenance["steps"]),
    }


def measured(provenance: Mapping[str, Any], *, date: str, hardware: str) -> str:
    """When, on what, and with which revision of the code."""
    code = provenance.get("code") or {}
    revision = f", code revision `{code['revision'][:12]}`" if code.get("revision") else ""
    return f"Measured on {date}, {hardware}{revision}."


def quality(frame: pd.DataFrame) -> str:
    """Distances to both reference sets; a reference against itself compares its halves."""
    rows = []
    for key, part in grouped(frame, ["base_model", "prompts", "method"]):
        by = {str(row["reference"]): row for _, row in part.iterrows()}
        first = part.iloc[0]
        rows.append(
            [
                *_variant(key),
                *(estimate(by.get(name), "fid").text(2) for name in REFERENCES),
                *(estimate(by.get(name), "cmmd").text(3) for name in REFERENCES),
                *(
                    estimate(by.get(REFERENCES[0]), name).text(2)
                    for name in ("precision", "recall")
                ),
                f"{first['face_quality_mean']:.2f} ± {first['face_quality_sd']:.2f}",
            ]
        )
    heads = ["Images", "Prompts", "Method", "FD photographs ↓", "FD in the wild ↓"]
    heads += ["MMD photographs ↓", "MMD in the wild ↓", "Precision ↑", "Recall ↑", "Face quality ↑"]
    extractors = [part.split("=", 1) for part in str(frame["extractors"].iloc[0]).split()]
    note = ", ".join(f"{TITLES.get(metric, metric)} {NAMES(name)}" for metric, name in extractors)
    return f"{pipes(heads, rows, texts=3)}\n\nExtractors: {note}."


def identity(frame: pd.DataFrame) -> str:
    """Error rates and Fisher ratios per judge, prompt set and method."""
    rows = []
    for key, part in grouped(frame, ["recogniser", "base_model", "prompts", "method"]):
        by = {str(row["versus"]): row for _, row in part.iterrows()}
        real, synthetic = by.get("real"), by.get("synthetic")
        rows.append(
            [
                NAMES(key[0]),
                *_variant(key[1:]),
                estimate(real, "eer").text(),
                estimate(real, "genuine_mean").text(2),
                estimate(real, "fdr").text(2),
                estimate(synthetic, "eer").text(),
                estimate(synthetic, "fdr").text(2),
            ]
        )
    heads = ["Judge", "Images", "Prompts", "Method", "EER vs real ↓", "Genuine mean vs real ↑"]
    heads += ["FDR vs real ↑", "EER within ↓", "FDR within ↑"]
    return pipes(heads, rows, texts=4)


def comparison(frame: pd.DataFrame) -> str:
    """Paired differences of the Fisher ratio; bold where the interval leaves out zero."""
    frame = frame[frame["metric"] == "fdr"]
    pairs = list(dict.fromkeys(zip(frame["method"], frame["minus_method"], strict=True)))
    rows = []
    for key, part in grouped(frame, ["recogniser", "base_model", "prompts", "versus"]):
        by = {(row["method"], row["minus_method"]): row for _, row in part.iterrows()}
        rows.append([NAMES(name) for name in key[:3]] + [key[3]])
        for pair in pairs:
            row = by.get(pair)
            if row is None:
                rows[-1].append("")
                continue
            difference = Estimate(float(row["difference"]), float(row["low"]), float(row["high"]))
            text = difference.text(2).replace("-", MINUS)
            decided = difference.low > 0 or difference.high < 0
            rows[-1].append(f"**{text}**" if decided else text)
    titles = [f"{NAMES(a)} {MINUS} {NAMES(b)}" for a, b in pairs]
    return pipes(["Judge", "Base model", "Prompts", "Compared with", *titles], rows, texts=4)


def recognition(frame: pd.DataFrame) -> str:
    """Accuracy per benchmark, averaged over seeds; the average is over test benchmarks alone."""
    roles = frame.drop_duplicates(["role", "benchmark"])[["role", "benchmark"]]
    columns = sorted(
        roles.itertuples(index=False), key=lambda item: (item.role != "test", order_key(item[1]))
    )
    rows = []
    for key, part in grouped(frame, ["base_model", "prompts", "method"]):
        average = average_accuracy(part)
        means = part.groupby(["role", "benchmark"])["accuracy"].mean()
        rows.append([*_variant(key), "" if average is None else average.text()])
        rows[-1] += [_cell(means.get((item.role, item.benchmark))) for item in columns]
    titles = [
        NAMES(item.benchmark) + ("" if item.role == "test" else " (validation)") for item in columns
    ]
    seeds = frame["seed"].nunique()
    note = f"{seeds} seed{'' if seeds == 1 else 's'} per training set."
    heads = ["Trained on", "Prompts", "Method", "Average of tests ↑", *titles]
    return f"{pipes(heads, rows, texts=3)}\n\n{note}"


def timing(steps: Mapping[str, Mapping[str, float]]) -> str:
    """Jobs, summed wall and processor time, and largest memory of each step."""
    place = {name: index for index, name in enumerate(STEPS)}
    rows = [
        [
            f"`{name}`",
            f"{entry['jobs']:.0f}",
            f"{entry['wall_seconds']:.0f}",
            f"{entry['processor_seconds']:.0f}",
            f"{entry['memory_mib']:.0f}",
        ]
        for name, entry in sorted(
            steps.items(), key=lambda item: (place.get(item[0], len(place)), item[0])
        )
    ]
    totals = [
        sum(entry[key] for entry in steps.values())
        for key in ("jobs", "wall_seconds", "processor_seconds")
    ]
    largest = max(entry["memory_mib"] for entry in steps.values())
    rows.append(["all", *(f"{total:.0f}" for total in totals), f"{largest:.0f}"])
    heads = ["Step", "Jobs", "Wall time, s", "Processor time, s", "Largest memory of a job, MiB"]
    return pipes(heads, rows, texts=1)


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


def grouped(frame: pd.DataFrame, keys: list[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups in the order of the paper's tables."""
    found = [(tuple(map(str, key)), part) for key, part in frame.groupby(keys, sort=False)]
    return sorted(found, key=lambda item: [order_key(part) for part in item[0]])


def estimate(row: pd.Series | None, key: str) -> Estimate:
    """A number of a row with its interval where the row has one; NaN without a row."""
    if row is None:
        return Estimate(float("nan"))
    limits = (float(row.get(f"{key}_{end}", float("nan"))) for end in ("low", "high"))
    return Estimate(float(row[key]), *limits)


def pipes(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A Markdown table; the first `texts` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    lines = [heads, rule, *([("" if cell == "nan" else cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _variant(key: Sequence[str]) -> list[str]:
    """Names of (base model, prompts, method)."""
    return [NAMES(name) for name in key]


def _cell(value: Any) -> str:
    return "" if value is None else f"{float(value):.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python docs/fill_tables.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", type=Path, required=True, help="folder of a finished study")
    parser.add_argument("--date", required=True, help="day of the measurement")
    parser.add_argument("--hardware", required=True, help="machine of the measurement")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default README.md")
    arguments = parser.parse_args(argv)
    tables = study_tables(arguments.study, date=arguments.date, hardware=arguments.hardware)
    text = arguments.readme.read_text(encoding="utf-8")
    write_text(arguments.readme, fill(text, tables))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
