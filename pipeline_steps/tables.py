"""Gather the scores of all variants into the study's tables (the paper's Tables 1 to 3).

Out: in --out: quality.csv, identity.csv, pose.csv, recognition.csv, audit.csv, groups.csv, and
     beside each a Markdown (.md) and a LaTeX (.tex, booktabs) table in the paper's layout: best
     fine-tuning result per base model and prompt set bold, second underlined. With --replicates
     also comparison.csv: differences between methods, whose intervals are paired over identities
     and thus narrower than what two separate intervals suggest. all.record.json: the hashes of
     what the tables were gathered from. Scores of another study or seed, or made from different
     versions of one set of features, are refused; and so is what one step made with two versions
     of a computing library, unless the configuration allows it.

Source: Tomasevic et al., "ID-Booth", FG 2025, Tables 1 to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline_steps.evidence.names import Names, order_key
from pipeline_steps.evidence.scores.identity import (
    COMPARISON_COLUMNS,
    REPLICATE_COLUMNS,
    compare_methods,
)
from pipeline_steps.evidence.tables.kinds import KINDS, empty_cells, tables_of
from pipeline_steps.evidence.tables.table import to_latex, to_markdown
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tables import read_csv, write_csv
from pipeline_steps.naming import VERIFICATION_COLUMNS
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import record_place, training_set_of
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_records, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import SCORE_KINDS, TablesSettings
from pipeline_steps.study.versions import refuse_mixed_versions


def run(
    frozen: Frozen[TablesSettings],
    *,
    scores: Sequence[Path],
    verification: Sequence[Path],
    out: Path,
    replicates: Sequence[Path] = (),
    audits: Sequence[Path] = (),
    groups: Sequence[Path] = (),
) -> dict[str, pd.DataFrame]:
    """Write all tables.

    Args:
        frozen: the step's configuration.
        scores: CSV files of the score step, any kinds mixed: a file's columns tell its kind.
        verification: recognition/<trained_on>/seed<k>/verification.csv of the verify step.
        out: Folder to write into.
        replicates: Bootstrap replicates of the score step, kind identity.
        audits: Summaries of the audit step.
        groups: Tables of the groups step.

    Returns:
        The gathered rows by kind.

    Raises:
        StepError: an unreadable file, a row that occurs twice, rows of different extractors, or
            versions of a library that are mixed and not allowed.
    """
    inputs = [*scores, *verification, *replicates, *audits, *groups]
    check_records(frozen, inputs)
    if not frozen.settings.allow_mixed_versions:
        refuse_mixed_versions(inputs)
    frames = gather_scores(scores) | {"recognition": gather_verification(verification)}
    for kind, paths in (("audit", audits), ("groups", groups)):
        parts = [read_csv(path, KINDS[kind].columns) for path in paths]
        frames[kind] = _gathered(kind, parts)
    made = []
    for kind, tables in tables_of(frames, Names.of(frozen)).items():
        csv, markdown, latex = (out / f"{kind}{ending}" for ending in (".csv", ".md", ".tex"))
        write_csv(csv, frames[kind], KINDS[kind].columns)
        for path, render in ((markdown, to_markdown), (latex, to_latex)):
            texts = [render(table, intervals=frozen.settings.intervals) for table in tables]
            write_text(path, "\n".join(texts))
        made += [csv, markdown, latex]
    if replicates:
        compared = compare_methods(
            [read_manifest(path, REPLICATE_COLUMNS) for path in replicates],
            frames["identity"],
            frozen.settings.confidence,
        )
        made.append(out / "comparison.csv")
        write_csv(made[-1], compared, COMPARISON_COLUMNS)
    write_record(record_place(out), frozen, made, inputs)
    log = get_logger("tables")
    for line in empty_cells(out):
        log.warning("%s", line)
    counts = ", ".join(f"{len(frame)} {kind}" for kind, frame in frames.items())
    log.info("rows written to %s: %s", out, counts)
    return frames


def gather_scores(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Rows of the score step by kind, sorted in the paper's order.

    Raises:
        StepError: a file of no known kind, a row that occurs twice, or mixed extractors.
    """
    parts: dict[str, list[pd.DataFrame]] = {kind: [] for kind in SCORE_KINDS}
    for path in paths:
        table = read_csv(path)
        kind = next((k for k in parts if set(table.columns) == set(KINDS[k].columns)), None)
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
        name, source, seed = training_set_of(path)
        tables.append(table.assign(trained_on=name, seed=seed, **source.columns))
    return _gathered("recognition", tables)


def _gathered(kind: str, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One sorted frame of a kind's columns."""
    columns, keys = list(KINDS[kind].columns), list(KINDS[kind].keys)
    filled = [table for table in tables if len(table)]
    if not filled:
        return pd.DataFrame(columns=columns)
    frame = pd.concat([table[columns] for table in filled], ignore_index=True)
    repeated = frame.duplicated(keys)
    if repeated.any():
        row = frame[repeated].iloc[0]
        what = ", ".join(f"{key} {row[key]}" for key in keys)
        raise StepError(f"the {kind} scores hold one row twice ({what}): pass each file once")
    order = sorted(range(len(frame)), key=lambda i: [order_key(frame[key][i]) for key in keys])
    return frame.iloc[order].reset_index(drop=True)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
