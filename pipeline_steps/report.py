"""Write the study's report: one HTML page that needs nothing but itself.

Out: one HTML file: what was run, findings in sentences with intervals, the identity audit, figures,
     tables, images that were left out and why, provenance. Images and table files are inside the
     page; it loads nothing.

Source: tables and figures of Tomasevic et al., "ID-Booth", FG 2025.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.audit.checks import GENERATED, PAIR_COLUMNS, VERDICTS
from pipeline_steps.evidence.names import Names, order_key
from pipeline_steps.evidence.report.findings import findings, order_claims
from pipeline_steps.evidence.report.page import (
    ImageCount,
    counts_of,
    data_uri,
    people_in,
    render,
    with_pictures,
)
from pipeline_steps.evidence.tables.kinds import KINDS, tables_of
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.tables import read_csv
from pipeline_steps.naming import EXTERNAL, REFERENCES, UNTUNED, VARIANT
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import ARTEFACTS, source_of
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_page
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ReportSettings
from pipeline_steps.study.source import Source
from pipeline_steps.study.versions import told, versions_behind


def run(
    frozen: Frozen[ReportSettings],
    *,
    tables: Path,
    figures: Path,
    manifests: Sequence[Path],
    out: Path,
    audit_pairs: Sequence[Path] = (),
    provenance: Path | None = None,
) -> None:
    """Write the page.

    Args:
        frozen: the step's configuration.
        tables: Folder of the tables step.
        figures: Folder of the figures step.
        manifests: dataset/manifest.parquet and aligned/<source>/manifest.parquet.
        out: HTML file to write.
        audit_pairs: audit/<variant>.pairs.csv of every variant in the audit table.
        provenance: provenance.json of the study.

    Raises:
        StepError: a table, figure or manifest is missing or broken, or they do not belong
            together.
    """
    names = Names.of(frozen)
    shown = [*sorted(tables.glob("*.csv")), *sorted(figures.glob("*.svg"))]
    frames = {kind: read_csv(tables / f"{kind}.csv") for kind in KINDS}
    check_page(frozen, shown)
    compared = tables / "comparison.csv"
    comparison = read_csv(compared) if compared.is_file() else pd.DataFrame()
    dataset = next((path for path in manifests if path.parent.name == "dataset"), None)
    aligned = [path for path in manifests if path != dataset]
    identity, settings = frames["identity"], frozen.settings
    claims = order_claims(identity, comparison, settings.expected_order, names)
    counts = counts_of(dataset, aligned, names)
    most = max((len(claim.ratios) for claim in claims), default=0)
    judge = frozen.weights.get("figures")
    page = render(
        "page.report.html.j2",
        title=settings.title,
        explorer=ARTEFACTS["explorer"].path,
        study=frozen.study,
        seed=frozen.seed,
        **_compared(identity, names),
        facts=_facts(identity, people_in(dataset) if dataset else "", counts),
        findings=findings(frames, claims, names),
        # The page's table has one column per method, so comparisons that lack one are not in it.
        claims=[claim for claim in claims if len(claim.ratios) == most],
        compared=len(comparison) > 0,
        audits=_audits(frames["audit"], audit_pairs, aligned, names),
        verdicts=VERDICTS,
        kinds=KINDS,
        tables=tables_of(frames, names),
        counts=counts,
        mixed_versions=told({path: versions_behind(path) for path in shown}),
        provenance=_read_json(provenance) if provenance else {},
        figures_judge=names(judge.name) if judge else "",
        figure_uri=lambda name: data_uri(figures / name),
        table_uri=lambda name: data_uri(tables / name),
    )
    write_text(out, page)
    get_logger("report").info("written to %s", out)


def _compared(identity: pd.DataFrame, names: Names) -> dict[str, list[str]]:
    """What the study compares, as shown."""
    variants = identity[~identity["base_model"].isin([*REFERENCES, EXTERNAL])]
    base_models, methods, prompts = (
        sorted(variants[column].astype(str).unique(), key=order_key) for column in VARIANT
    )
    return {
        "base_models": list(map(names, base_models)),
        "methods": ["the untuned model" if m == UNTUNED else names(m) for m in methods],
        "prompts": list(map(names, prompts)),
    }


def _facts(identity: pd.DataFrame, people: str, counts: Sequence[ImageCount]) -> dict[str, str]:
    """The tiles at the top; those without a value are not shown."""
    variants = identity[~identity["base_model"].isin([*REFERENCES, EXTERNAL])]
    photographs = sum(count.kept for count in counts if count.kind == "photographs")
    generated = [count for count in counts if count.kind == "generated"]
    images, faces = sum(c.images for c in generated), sum(c.kept for c in generated)
    return {
        "People": people if photographs else "",
        "Photographs": _thousands(photographs),
        "Variants": str(len(variants[list(VARIANT)].drop_duplicates())),
        "Generated images": _thousands(images),
        "of which with a face": f"{faces / images:.1%}" if images else "",
        "Judges of identity": str(identity["recogniser"].nunique()),
    }


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if number else ""


def _audits(
    frame: pd.DataFrame, pairs: Sequence[Path], aligned: Sequence[Path], names: Names
) -> list[dict[str, Any]]:
    """Audits in the tables' order, each with the closest pair per check and all flagged ones."""
    rows = {source_of(path, "audit_pairs"): read_csv(path, PAIR_COLUMNS) for path in pairs}
    folders = {source_of(path, "aligned"): path.parent for path in aligned}
    found = []
    for summary in frame.to_dict("records"):
        source = Source(*(str(summary[key]) for key in VARIANT))
        if source not in rows or source not in folders:
            raise StepError(
                f"the audit table has a row of {source.name}, but its pairs or aligned images were "
                "not passed: pass them under --audit-pairs and --manifests"
            )
        shown = rows[source]
        shown = shown[shown["flagged"] | (shown["rank"] == 1)]
        shown = shown.sort_values("flagged", ascending=False, kind="stable")
        sets = {name: folders.get(Source(name)) for name in REFERENCES}
        pictures = with_pictures(shown.to_dict("records"), sets | {GENERATED: folders[source]})
        found.append({"variant": names.variant(source), "summary": summary, "pairs": pictures})
    return found


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StepError(f"provenance {path} cannot be read ({error}): write it again") from error
    if not isinstance(content, dict):
        raise StepError(f"provenance {path} is no JSON object: write it again")
    return content


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
