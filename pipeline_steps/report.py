"""Write the study's report: one HTML page that needs nothing but itself.

In:  the folders of the tables and figures steps; manifests with kept and reason (--manifests: the
     dataset's and those of the aligned sets); provenance.json (--provenance, optional).
Out: one HTML file: what was run, findings in sentences with intervals, figures, tables, images that
     were left out and why, provenance. Images are inside the page; it loads nothing.

Source: tables and figures of Tomasevic et al., "ID-Booth", FG 2025.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.findings import (
    ImageCount,
    count_images,
    error_sentences,
    order_claims,
    order_sentences,
    quality_sentences,
    recognition_sentences,
)
from pipeline_steps.evidence.markup import to_html
from pipeline_steps.evidence.names import UNTUNED, Names, order_key, variant_key
from pipeline_steps.evidence.page import Page, Picture, data_uri, provenance_excerpt, render
from pipeline_steps.evidence.paper_tables import paper_tables
from pipeline_steps.evidence.sources import REFERENCES, source_of
from pipeline_steps.evidence.tables_io import read_csv
from pipeline_steps.files.atomic import write_text
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.files.logs import get_logger
from pipeline_steps.files.manifests import read_manifest
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.report import ReportSettings

VARIANT = ("base_model", "method", "prompts")
KINDS = ("identity", "quality", "recognition", "pose")
PICTURES = (
    (
        "overview.png",
        "Photographs (framed) and generated images of the same people.",
        "Grid: per row one person’s photograph, then generated images of that person",
    ),
    (
        "samples.png",
        "The same prompts, seeds and noise for every method. Under each image: mean cosine "
        "similarity to the person’s photographs.",
        "Grid: photographs of one person, then a row of generated images per method",
    ),
    (
        "distributions.svg",
        "Similarity of genuine (filled) and impostor pairs (dashed), to the photographs and among "
        "the generated images.",
        "Density curves of genuine and impostor similarity per method",
    ),
)


def run(
    frozen: Frozen[ReportSettings],
    *,
    tables: Path,
    figures: Path,
    manifests: Sequence[Path],
    out: Path,
    provenance: Path | None = None,
) -> None:
    """Write the page.

    Args:
        frozen: the step's configuration.
        tables, figures: folders of those steps.
        manifests: dataset/manifest.parquet and aligned/<source>/manifest.parquet.
        out: HTML file to write.
        provenance: provenance.json of the study.

    Raises:
        StepError: a table, figure or manifest is missing or broken.
    """
    settings = frozen.settings
    names = Names(settings.labels)
    frames = {kind: read_csv(tables / f"{kind}.csv") for kind in KINDS}
    compared = tables / "comparison.csv"
    comparison = read_csv(compared) if compared.is_file() else pd.DataFrame()
    claims = order_claims(frames["identity"], comparison, settings.expected_order, names)
    counts = _counts(manifests, names)
    laid_out = paper_tables(frames, names)
    page = Page(
        title=settings.title,
        study=frozen.study,
        lead=_lead(frozen, frames["identity"], names),
        facts=_facts(frames["identity"], _people(manifests), counts),
        findings=(
            ("Do the generated people look like the consenting people?", order_sentences(claims)),
            ("How often are they confused?", error_sentences(frames["identity"], names)),
            ("How close are the images to real ones?", quality_sentences(frames["quality"], names)),
            (
                "Are they good for training recognition?",
                recognition_sentences(frames["recognition"], names),
            ),
        ),
        # The page's table has one column per method, so comparisons that lack one are not in it.
        claims=[claim for claim in claims if len(claim.ratios) == len(claims[0].ratios)],
        pictures=[
            Picture(Path(file).stem, caption, alt, data_uri(figures / file))
            for file, caption, alt in PICTURES
        ],
        tables=[to_html(table) for kind in KINDS for table in laid_out.get(kind, [])],
        counts=counts,
        provenance=provenance_excerpt(_read_json(provenance)) if provenance else {},
    )
    write_text(out, render(page))
    get_logger("report").info("written to %s", out)


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
    identity: pd.DataFrame, people: int, counts: Sequence[ImageCount]
) -> list[tuple[str, str]]:
    """The tiles at the top."""
    variants = identity[~identity["base_model"].isin(REFERENCES)]
    photographs = sum(count.kept for count in counts if count.kind == "photographs")
    generated = [count for count in counts if count.kind == "generated"]
    images, faces = sum(c.images for c in generated), sum(c.kept for c in generated)
    facts = [("Variants", str(len(variants[list(VARIANT)].drop_duplicates())))]
    if photographs:
        facts = [("People", str(people)), ("Photographs", _thousands(photographs)), *facts]
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


def _counts(paths: Sequence[Path], names: Names) -> list[ImageCount]:
    """Images of every manifest, photographs first."""
    found: list[tuple[tuple[Any, ...], ImageCount]] = []
    for path in paths:
        frame = read_manifest(path, ["kept", "reason"])
        if _is_dataset(path):
            found.append(((0,), count_images("photographs", "Photographs, prepared", frame)))
            continue
        source = source_of(path, "aligned")
        if source.is_reference:
            what = f"{names(source.name)}, aligned"
            found.append(
                ((1, order_key(source.name)), count_images("reference", what, frame)),
            )
            continue
        key = variant_key(source.base_model, source.prompts, source.method)
        method = UNTUNED if source.method == UNTUNED else names(source.method)
        what = f"{names(source.base_model)}, {names(source.prompts)}, {method}"
        found.append(((2, key), count_images("generated", what, frame)))
    return [count for _, count in sorted(found, key=lambda item: item[0])]


def _people(paths: Sequence[Path]) -> int:
    """Identities with a kept photograph."""
    frames = [read_manifest(path, ["identity", "kept"]) for path in paths if _is_dataset(path)]
    return sum(frame.loc[frame["kept"].astype(bool), "identity"].nunique() for frame in frames)


def _is_dataset(path: Path) -> bool:
    return path.parent.name == "dataset"


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
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_steps.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="frozen configuration (JSON)")
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables step")
    parser.add_argument("--figures", type=Path, required=True, help="folder of the figures step")
    parser.add_argument(
        "--manifests",
        type=Path,
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE",
        help="manifests of the dataset and of the aligned sets",
    )
    parser.add_argument("--provenance", type=Path, help="provenance.json of the study")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args(argv)
    run(
        load_frozen(arguments.config, ReportSettings),
        tables=arguments.tables,
        figures=arguments.figures,
        manifests=arguments.manifests,
        out=arguments.out,
        provenance=arguments.provenance,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
