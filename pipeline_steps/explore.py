"""Make the explorer: a page to look through all photographs and images of a study, side by side.

In:  manifests of photographs, samples and aligned faces; features of these faces by recognisers,
     estimators of quality and pose; the audits' tables.
Out: explorer/index.html           opens from a file: no server, no network, nothing to install;
     explorer/explorer.{js,css}    what it does and how it looks;
     explorer/data/*.js            columns with a value for each image; what manifests and tables
                                   say of each, loaded when the image is opened;
     explorer/sheets/<n>.jpg       thumbnails, 25 to a sheet, loaded when they are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.explorer.items import Files, columns_of, images_of
from pipeline_steps.evidence.explorer.page import beside, plain, write_page, write_sheets
from pipeline_steps.evidence.names import Names, colours_of, order_key, source_key
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.io.tables import read_csv
from pipeline_steps.io.tensors import header_of, load_features
from pipeline_steps.naming import REAL
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import ARTEFACTS, source_of
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_same_extractor
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ExploreSettings
from pipeline_steps.study.source import Source

NEUTRAL = "#7b838c"  # of sets that are no method's


def run(
    frozen: Frozen[ExploreSettings],
    *,
    dataset: Path,
    aligned: Sequence[Path],
    features: Sequence[Path],
    out: Path,
    samples: Sequence[Path] = (),
    audits: Sequence[Path] = (),
) -> None:
    """Write the page with its data and thumbnails.

    Args:
        frozen: the step's configuration.
        dataset: Folder of the prepare step.
        aligned: Manifests of the aligned faces of the photographs and of each other set to show.
        features: Features of these sets: by judges, the one to begin with last; quality; pose.
        out: HTML file to write; its folder is replaced.
        samples: Manifests of every variant's samples.
        audits: Table of every variant's audit.

    Raises:
        StepError: no features of the photographs, different networks, or a broken file.
    """
    names = Names.of(frozen)
    headers = {path: header_of(path) for path in features}
    check_same_extractor(list(headers.items()))
    tasks = {path.stem: header.get("task", "") for path, header in headers.items()}
    judges = [name for name, task in tasks.items() if task == "recogniser"]
    measured: dict[Source, dict[str, Path]] = {}
    for path in features:
        measured.setdefault(source_of(path, "features"), {})[path.stem] = path
    real = measured.get(Source(REAL), {})
    if not judges or not set(judges) <= set(real):
        raise StepError("the explorer needs features of the photographs by every recogniser")
    photographs = {name: load_features(real[name]) for name in judges}
    listed = {source_of(path, "samples"): path for path in samples}
    listed[Source(REAL)] = dataset / "manifest.parquet"
    audited = {source_of(path, "audit"): path for path in audits}
    manifests = {source_of(path, "aligned"): path for path in aligned}
    people = read_csv(dataset / "identities.csv", ("identity",), texts=True)
    frames: list[pd.DataFrame] = []
    sets: list[dict[str, Any]] = []
    sources = sorted(
        manifests, key=lambda of: (of.name != REAL, not _made_here(of), source_key(of))
    )
    for source, looks in zip(sources, _looks(sources, names), strict=True):
        files = Files(
            manifests[source], listed.get(source), audited.get(source), measured.get(source, {})
        )
        most = frozen.settings.images
        found = images_of(source, files, photographs, people["identity"], most)
        frames.append(found.assign(set=len(sets), folder=str(files.images)))
        sets.append(
            looks
            | {
                "name": source.name,
                "folder": beside(files.images, out.parent),
                "faces": beside(files.aligned.parent, out.parent),
                "total": int(found["total"].max()) if len(found) else 0,
            }
        )
    frame = pd.concat(frames, ignore_index=True)
    items, words = columns_of(frame)
    study = words | {
        "name": frozen.study,
        "report": beside(out.parent.with_name("report.html"), out.parent),
        "sets": sets,
        "about": {row.pop("identity"): row for row in people.to_dict("records")},
        "judges": [{"name": j, "label": names(j), "guide": j == names.guide} for j in judges],
        "extractors": {name: {"task": task, "label": names(name)} for name, task in tasks.items()},
        "features": ARTEFACTS["features"].path,
    }
    tables = [
        {beside(Path(path), out.parents[1]): plain(row, None) for path, row in of.items()}
        for of in frame["tables"]
    ]
    pictures = [
        Path(folder, file) if isinstance(file, str) else None
        for folder, file in zip(frame["folder"], frame["file"], strict=True)
    ]
    with atomic_path(out.parent) as folder:
        items["picture"] = write_sheets(folder / "sheets", pictures, frozen.settings.thumbnail)
        write_page(folder, out.name, study, items, tables)
    get_logger("explore").info("%d images of %d sets in %s", len(frame), len(sets), out)


def _looks(sources: Sequence[Source], names: Names) -> list[dict[str, Any]]:
    """How each set is shown: variants stand side by side, a column for each method."""
    variants = list(filter(_made_here, sources))
    colours = colours_of(sorted({of.method for of in variants}, key=order_key), {})
    several = len({of.base_model for of in variants}) > 1
    return [
        {
            "label": "Photographs" if of.name == REAL else names.variant(of),
            "paired": _made_here(of),
            "prompts": names(of.prompts) if _made_here(of) else "",
            "column": (f"{names(of.base_model)}, " if several else "") + names.method(of.method),
            "colour": colours.get(of.method, NEUTRAL),
        }
        for of in sources
    ]


def _made_here(source: Source) -> bool:
    """Whether a set is a variant, whose images are paired with those of other methods."""
    return not (source.is_reference or source.is_external)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
