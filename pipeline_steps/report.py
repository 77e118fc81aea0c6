"""Write the study's report: one HTML page that needs nothing but itself.

In:  the folders of the tables and figures steps; manifests with kept and reason (--manifests: the
     dataset's and those of the aligned sets); pairs of the audit step (--audit-pairs);
     provenance.json (--provenance, optional).
Out: one HTML file: what was run, findings in sentences with intervals, the identity audit, figures,
     tables, images that were left out and why, provenance. Images and table files are inside the
     page; it loads nothing.

Source: tables and figures of Tomasevic et al., "ID-Booth", FG 2025.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline_steps.evidence.audit.suspicious_pairs import GENERATED, PAIR_COLUMNS
from pipeline_steps.evidence.origins import check_page
from pipeline_steps.evidence.report.findings import (
    error_sentences,
    order_claims,
    order_sentences,
    quality_sentences,
    recognition_sentences,
)
from pipeline_steps.evidence.report.image_counts import ImageCount, counts_of, is_dataset, people_in
from pipeline_steps.evidence.report.page import (
    Page,
    Picture,
    TableGroup,
    VariantAudit,
    data_uri,
    download,
    provenance_excerpt,
    render,
)
from pipeline_steps.evidence.report.pair_page import with_pictures
from pipeline_steps.evidence.report.report_texts import PICTURES, TITLES
from pipeline_steps.evidence.tables.judges import guide_of, judge_sentences
from pipeline_steps.evidence.tables.names import Names, order_key
from pipeline_steps.evidence.tables.paper_tables import paper_tables
from pipeline_steps.evidence.tables.variants import variant_name
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.tables import read_csv
from pipeline_steps.naming import REFERENCES, UNTUNED, VARIANT
from pipeline_steps.runtime.command_line import add_paths, step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.evidence import ReportSettings
from pipeline_steps.study.sources import Source, audited, source_of


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
        tables, figures: folders of those steps.
        manifests: dataset/manifest.parquet and aligned/<source>/manifest.parquet.
        out: HTML file to write.
        audit_pairs: audit/<variant>.pairs.csv of every variant in the audit table.
        provenance: provenance.json of the study.

    Raises:
        StepError: a table, figure or manifest is missing or broken, or they do not belong
            together.
    """
    settings, guide = frozen.settings, guide_of(frozen.weights)
    names = Names(settings.labels)
    frames = {kind: read_csv(tables / f"{kind}.csv") for kind in TITLES}
    check_page(frozen, sorted(tables.glob("*.csv")), sorted(figures.glob("*.svg")))
    compared = tables / "comparison.csv"
    comparison = read_csv(compared) if compared.is_file() else pd.DataFrame()
    claims = order_claims(frames["identity"], comparison, settings.expected_order, names)
    counts = counts_of(manifests, names)
    laid_out = paper_tables(frames, names, guide)
    page = Page(
        title=settings.title,
        study=frozen.study,
        lead=_lead(frozen, frames["identity"], names),
        facts=_facts(frames["identity"], people_in(manifests), counts),
        findings=(
            ("Who judges?", judge_sentences(frames["identity"], names, guide)),
            (
                "Do the generated people look like the consenting people?",
                order_sentences(claims, names(guide) if guide else ""),
            ),
            ("How often are they confused?", error_sentences(frames["identity"], names)),
            ("How close are the images to real ones?", quality_sentences(frames["quality"], names)),
            (
                "Are they good for training recognition?",
                recognition_sentences(frames["recognition"], names),
            ),
        ),
        # The page's table has one column per method, so comparisons that lack one are not in it.
        claims=[claim for claim in claims if len(claim.ratios) == len(claims[0].ratios)],
        claims_file=download(compared) if len(comparison) else None,
        audits=_audits(frames["audit"], audit_pairs, manifests, names),
        pictures=_pictures(figures, frozen, names),
        tables=[
            TableGroup(
                title,
                laid_out[kind],
                [download(tables / f"{kind}.{form}") for form in ("csv", "md", "tex")],
            )
            for kind, title in TITLES.items()
            if kind in laid_out
        ],
        counts=counts,
        provenance=provenance_excerpt(_read_json(provenance)) if provenance else {},
    )
    write_text(out, render(page))
    get_logger("report").info("written to %s", out)


def _pictures(figures: Path, frozen: Frozen[ReportSettings], names: Names) -> list[Picture]:
    judge = frozen.weights.get("figures")
    by = f", judged by {names(judge.name)}" if judge else ""
    return [
        Picture(Path(file).stem, caption.format(by=by), alt, data_uri(figures / file))
        for file, caption, alt in PICTURES
    ]


def _audits(
    frame: pd.DataFrame, pairs: Sequence[Path], manifests: Sequence[Path], names: Names
) -> list[VariantAudit]:
    """Audits in the tables' order, each with the closest pair per check and all flagged ones."""
    rows = {audited(path): read_csv(path, PAIR_COLUMNS) for path in pairs}
    folders = {
        source_of(path, "aligned"): path.parent for path in manifests if not is_dataset(path)
    }
    found = []
    for _, summary in frame.iterrows():
        source = Source(*(str(summary[key]) for key in VARIANT))
        if source not in rows or source not in folders:
            raise StepError(
                f"the audit table has a row of {source.name}, but its pairs or aligned images were "
                "not passed: pass them under --audit-pairs and --manifests"
            )
        shown = rows[source]
        shown = shown[shown["flagged"] | (shown["rank"] == 1)].sort_values(
            "flagged", ascending=False, kind="stable"
        )
        sets = {GENERATED: folders[source]} | {
            name: folders.get(Source(name)) for name in REFERENCES
        }
        records = [{str(key): value for key, value in row.items()} for _, row in shown.iterrows()]
        counts = {str(key): value for key, value in summary.items()}
        pictures = with_pictures(records, sets)
        found.append(VariantAudit(variant_name(source, names), counts, pictures))
    return found


def _lead(frozen: Frozen[ReportSettings], identity: pd.DataFrame, names: Names) -> str:
    variants = identity[~identity["base_model"].isin(REFERENCES)]
    methods = [
        "the untuned model" if method == UNTUNED else names(method)
        for method in sorted(variants["method"].astype(str).unique(), key=order_key)
    ]
    models = _listed(variants["base_model"], names)
    prompts = _listed(variants["prompts"], names)
    return (
        f"Study “{frozen.study}”, seed {frozen.seed}. Base model: {models}. Compared: "
        f"{', '.join(methods)}. Prompt sets: {prompts}."
    )


def _facts(
    identity: pd.DataFrame, people: str, counts: Sequence[ImageCount]
) -> list[tuple[str, str]]:
    """The tiles at the top."""
    variants = identity[~identity["base_model"].isin(REFERENCES)]
    photographs = sum(count.kept for count in counts if count.kind == "photographs")
    generated = [count for count in counts if count.kind == "generated"]
    images, faces = sum(c.images for c in generated), sum(c.kept for c in generated)
    facts = [("Variants", str(len(variants[list(VARIANT)].drop_duplicates())))]
    if photographs:
        facts = [("People", people), ("Photographs", _thousands(photographs)), *facts]
    if images:
        facts += [
            ("Generated images", _thousands(images)),
            ("of which with a face", f"{faces / images:.1%}"),
        ]
    facts.append(("Judges of identity", str(identity["recogniser"].nunique())))
    return facts


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _listed(values: pd.Series, names: Names) -> str:
    return ", ".join(names(value) for value in sorted(values.astype(str).unique(), key=order_key))


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StepError(f"provenance {path} cannot be read ({error}): write it again") from error
    if not isinstance(content, dict):
        raise StepError(f"provenance {path} is no JSON object: write it again")
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("report", __doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables step")
    parser.add_argument("--figures", type=Path, required=True, help="folder of the figures step")
    add_paths(parser, "--manifests", "manifests of the dataset and of the aligned sets")
    add_paths(parser, "--audit-pairs", "pairs of every variant's audit")
    parser.add_argument("--provenance", type=Path, help="provenance.json of the study")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args(argv)
    run(
        load_frozen(arguments.config, ReportSettings),
        tables=arguments.tables,
        figures=arguments.figures,
        manifests=arguments.manifests,
        out=arguments.out,
        audit_pairs=arguments.audit_pairs,
        provenance=arguments.provenance,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
