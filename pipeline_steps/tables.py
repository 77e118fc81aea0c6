"""Gather the scores of all variants into the study's tables (the paper's Tables 1 to 3).

In:  CSV files of the score step (--scores, any kinds mixed: a file's columns tell its kind) and of
     the verify step (--verification, at recognition/<trained_on>/seed<k>/verification.csv);
     bootstrap replicates of the score step (--replicates, optional); summaries of the audit step
     (--audits, optional).
Out: in --out: quality.csv, identity.csv, pose.csv, recognition.csv, audit.csv, and beside each
     a Markdown (.md) and a LaTeX (.tex, booktabs) table in the paper's layout: best fine-tuning
     result per base model and prompt set bold, second underlined. With --replicates also
     comparison.csv: differences between methods, whose intervals are paired over identities and
     thus narrower than what two separate intervals suggest. all.record.json: the hashes of
     what the tables were gathered from. Scores of another study or seed, or made from different
     versions of one set of features, are refused.

Source: Tomasevic et al., "ID-Booth", FG 2025, Tables 1 to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline_steps.evidence.audit.audit import SUMMARY_COLUMNS
from pipeline_steps.evidence.origins import check_records
from pipeline_steps.evidence.scores.comparison import COMPARISON_COLUMNS, compare_methods
from pipeline_steps.evidence.scores.scoring import (
    IDENTITY_COLUMNS,
    POSE_COLUMNS,
    QUALITY_COLUMNS,
    REPLICATE_COLUMNS,
)
from pipeline_steps.evidence.tables.judges import guide_of
from pipeline_steps.evidence.tables.markup import to_latex, to_markdown
from pipeline_steps.evidence.tables.names import Names, order_key
from pipeline_steps.evidence.tables.paper_tables import paper_tables
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tables import read_csv, write_csv
from pipeline_steps.naming import VARIANT, VERIFICATION_COLUMNS
from pipeline_steps.runtime.command_line import add_paths, step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import run_main
from pipeline_steps.study.record import record_place, write_record
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.evidence import TablesSettings
from pipeline_steps.study.sources import trained_on

RECOGNITION_COLUMNS = ("trained_on", *VARIANT, "seed", *VERIFICATION_COLUMNS)
COLUMNS = {
    "quality": QUALITY_COLUMNS,
    "identity": IDENTITY_COLUMNS,
    "pose": POSE_COLUMNS,
    "recognition": RECOGNITION_COLUMNS,
    "audit": SUMMARY_COLUMNS,
}
# What may occur only once, in sorting order.
KEYS = {
    "quality": ("base_model", "prompts", "method", "reference"),
    "identity": ("versus", "recogniser", "base_model", "prompts", "method"),
    "pose": ("base_model", "prompts", "method"),
    "recognition": ("base_model", "prompts", "method", "seed", "role", "benchmark"),
    "audit": ("base_model", "prompts", "method"),
}


def run(
    frozen: Frozen[TablesSettings],
    *,
    scores: Sequence[Path],
    verification: Sequence[Path],
    out: Path,
    replicates: Sequence[Path] = (),
    audits: Sequence[Path] = (),
) -> dict[str, pd.DataFrame]:
    """Write all tables.

    Args:
        frozen: the step's configuration.
        scores: CSV files of the score step.
        verification: CSV files of the verify step.
        out: folder to write into.
        replicates: Parquet files of the score step, kind identity.
        audits: summaries of the audit step.

    Returns:
        The gathered rows by kind.

    Raises:
        StepError: an unreadable file, a row that occurs twice, or rows of different extractors.
    """
    inputs = [*scores, *verification, *replicates, *audits]
    check_records(frozen, inputs)
    frames = gather_scores(scores) | {"recognition": gather_verification(verification)}
    frames["audit"] = _gathered("audit", [read_csv(path, SUMMARY_COLUMNS) for path in audits])
    tables = paper_tables(frames, Names(frozen.settings.labels), guide_of(frozen.weights))
    for kind, columns in COLUMNS.items():
        write_csv(out / f"{kind}.csv", frames[kind], columns)
        intervals = frozen.settings.intervals
        shown = tables.get(kind, [])
        for suffix, render in ((".md", to_markdown), (".tex", to_latex)):
            texts = [render(table, intervals=intervals) for table in shown]
            write_text(out / f"{kind}{suffix}", "\n".join(texts))
    if replicates:
        compared = compare_methods(
            [read_manifest(path, REPLICATE_COLUMNS) for path in replicates],
            frames["identity"],
            frozen.settings.confidence,
        )
        write_csv(out / "comparison.csv", compared, COMPARISON_COLUMNS)
    made = [out / f"{kind}{ending}" for kind in COLUMNS for ending in (".csv", ".md", ".tex")]
    made += [out / "comparison.csv"] if replicates else []
    write_record(record_place(out), frozen, made, inputs)
    counts = ", ".join(f"{len(frame)} {kind}" for kind, frame in frames.items())
    get_logger("tables").info("rows written to %s: %s", out, counts)
    return frames


def gather_scores(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Rows of the score step by kind, sorted in the paper's order.

    Raises:
        StepError: a file of no known kind, a row that occurs twice, or mixed extractors.
    """
    parts: dict[str, list[pd.DataFrame]] = {"quality": [], "identity": [], "pose": []}
    for path in paths:
        table = read_csv(path)
        kind = next((kind for kind in parts if set(table.columns) == set(COLUMNS[kind])), None)
        if kind is None:
            raise StepError(f"{path} is no table of the score step: columns {list(table.columns)}")
        parts[kind].append(table)
    frames = {kind: _gathered(kind, tables) for kind, tables in parts.items()}
    for kind, column in (("quality", "extractors"), ("pose", "extractor")):
        found = sorted(frames[kind][column].unique())
        if len(found) > 1:
            raise StepError(
                f"the {kind} scores come from different extractors ({'; '.join(found)}) and cannot "
                "stand in one table: score all variants again with one configuration"
            )
    return frames


def gather_verification(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows of the verify step, with what was trained on read off the folders."""
    tables = []
    for path in paths:
        table = read_csv(path, VERIFICATION_COLUMNS)
        name, source, seed = trained_on(path)
        tables.append(table.assign(trained_on=name, seed=seed, **source.columns))
    return _gathered("recognition", tables)


def _gathered(kind: str, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One sorted frame of a kind's columns."""
    columns, keys = list(COLUMNS[kind]), list(KEYS[kind])
    filled = [table for table in tables if len(table)]
    if not filled:
        return pd.DataFrame(columns=columns)
    frame = pd.concat([table[columns] for table in filled], ignore_index=True)
    repeated = frame.duplicated(keys)
    if repeated.any():
        row = frame[repeated].iloc[0]
        what = ", ".join(f"{key} {row[key]}" for key in keys)
        raise StepError(f"the {kind} scores hold one row twice ({what}): pass each file once")
    order = sorted(range(len(frame)), key=lambda i: [order_key(str(frame[k][i])) for k in keys])
    return frame.iloc[order].reset_index(drop=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("tables", __doc__)
    add_paths(parser, "--scores", "CSV files of the score step")
    add_paths(parser, "--verification", "CSV files of the verify step")
    add_paths(parser, "--replicates", "bootstrap replicates of the score step")
    add_paths(parser, "--audits", "summaries of the audit step")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args(argv)
    run(
        load_frozen(arguments.config, TablesSettings),
        scores=arguments.scores,
        verification=arguments.verification,
        out=arguments.out,
        replicates=arguments.replicates,
        audits=arguments.audits,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
