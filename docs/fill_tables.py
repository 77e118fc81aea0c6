"""Fill a study's tables and pictures into README.md and docs/results.md.

In:  a finished study: tables/{quality,identity,recognition,comparison}.csv, provenance.json and
     figures/{samples,distributions}.png.
Out: both pages, in which the text between `<!-- table:NAME -->` and the next `<!-- /table -->` is
     replaced; everything else stays. docs/images/{samples,distributions}.webp: the figures,
     smaller. Filling twice changes nothing.

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

import table_text
from PIL import Image

from pipeline_steps.evidence.scores.comparison import COMPARISON_COLUMNS
from pipeline_steps.evidence.scores.scoring import IDENTITY_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.evidence.tables.kinds import RECOGNITION_COLUMNS
from pipeline_steps.io.atomic import atomic_path, write_text
from pipeline_steps.io.tables import read_csv
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main

ROOT = Path(__file__).resolve().parents[1]
MARKED = r"(<!-- table:{name} -->\n).*?(<!-- /table -->)"
# Tables of each page, by the name of the option that says where the page is.
PAGES = {
    "readme": ("summary", "measured"),
    "results": ("measured", "quality", "identity", "comparison", "recognition", "timing"),
}
# Figures and their width on the page, pixels.
PICTURES = {"samples": 900, "distributions": 900}
WEBP_QUALITY = 85


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
    quality = read_csv(folder / "quality.csv", QUALITY_COLUMNS)
    identity = read_csv(folder / "identity.csv", IDENTITY_COLUMNS)
    recognition = read_csv(folder / "recognition.csv", RECOGNITION_COLUMNS)
    comparison = read_csv(folder / "comparison.csv", COMPARISON_COLUMNS)
    return {
        "measured": table_text.measured(provenance, date=date, hardware=hardware),
        "summary": table_text.summary(quality, identity, recognition),
        "quality": table_text.quality(quality),
        "identity": table_text.identity(identity),
        "comparison": table_text.comparison(comparison),
        "recognition": table_text.recognition(recognition),
        "timing": table_text.timing(provenance["steps"]),
    }


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
    parser.add_argument(
        "--results", type=Path, default=ROOT / "docs/results.md", help="default docs/results.md"
    )
    parser.add_argument(
        "--images", type=Path, default=ROOT / "docs/images", help="default docs/images"
    )
    arguments = parser.parse_args(argv)
    tables = study_tables(arguments.study, date=arguments.date, hardware=arguments.hardware)
    for option, names in PAGES.items():
        page = getattr(arguments, option)
        text = page.read_text(encoding="utf-8")
        write_text(page, fill(text, {name: tables[name] for name in names}))
    write_pictures(arguments.study / "figures", arguments.images)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
