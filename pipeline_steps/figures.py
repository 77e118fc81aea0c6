"""Draw the study's figures (the paper's Figures 3, 4 and 1, and coverage).

Out: in --out, as SVG and PNG:
     distributions  genuine and impostor similarity of every method, against the real images and
                    among the synthetic ones, a row per base model and prompt set (Figure 3)
     samples        photographs and every method's images of the same prompts, with the mean
                    similarity to the identity's photographs under each image (Figure 4)
     overview       identities beside their generated images (Figure 1)
     pose           yaw and pitch of every method's images over those of the photographs
     attributes     similarity and faces found, per expression and place that prompts name
     groups         error rates and faces found, per group of people
     measures       prompt score, distance to the photographs, PSNR and SSIM of every method
     all.record.json  hashes of what they were drawn from

Source: Tomasevic et al., "ID-Booth", FG 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline_steps.evidence.figures.grids import (
    Gallery,
    GridRow,
    Tile,
    distinct_words,
    grid_figure,
    unit_embeddings,
)
from pipeline_steps.evidence.figures.plots import (
    ATTRIBUTES,
    MEASURE_AXES,
    Scores,
    attribute_rows,
    attributes_figure,
    distributions_figure,
    groups_figure,
    measures_figure,
    pose_figure,
)
from pipeline_steps.evidence.names import (
    SETTING,
    Names,
    by_setting,
    colours_of,
    order_key,
    source_key,
)
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.io.figures import save_figure
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tables import read_csv
from pipeline_steps.io.tensors import Features, load_features
from pipeline_steps.metrics.pairs import compare
from pipeline_steps.naming import REAL, identities_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.artefacts import record_place, source_of
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_features, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FiguresSettings
from pipeline_steps.study.source import NOT_APPLICABLE, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(
    frozen: Frozen[FiguresSettings],
    *,
    dataset: Path,
    real: Path,
    variant_features: Sequence[Path],
    samples: Sequence[Path],
    pose: Sequence[Path],
    out: Path,
    groups: Sequence[Path] = (),
    scores: Sequence[Path] = (),
) -> None:
    """Draw and write all figures.

    Args:
        frozen: the step's configuration.
        dataset: Folder of the prepare step.
        real: Embeddings of the photographs.
        variant_features: Embeddings of every variant, by the same recogniser.
        samples: Manifests of every variant's samples, and of the aligned faces of other sets.
        pose: Head poses of the photographs and of every variant.
        out: Folder to write into.
        groups: Tables of the groups step.
        scores: Scores of quality and identity, and summaries of the audit, of every variant.

    Raises:
        StepError: no variant, several recognisers, features without samples and vice versa, or
            features that do not belong to these images.
    """
    recognisers = {path.stem for path in (real, *variant_features)}
    if len(recognisers) > 1:
        raise StepError(
            f"figures show one recogniser, but got features of {', '.join(sorted(recognisers))}"
        )
    features = {source_of(path, "features"): load_features(path) for path in variant_features}
    manifests = {source_of(path, "samples", "aligned"): path for path in samples}
    if not features or set(features) != set(manifests):
        odd = sorted(source.name for source in set(features) ^ set(manifests)) or ["none"]
        raise StepError(f"figures need features and samples of the same variants: {', '.join(odd)}")
    poses = {source_of(path, "features"): load_features(path) for path in pose}
    if set(poses) != {Source(REAL), *features}:
        raise StepError("figures need head poses of the photographs and of exactly the variants")
    prepared = dataset / "manifest.parquet"
    check_features([real, *variant_features], pose, [prepared, *samples])
    features[Source(REAL)] = load_features(real)
    photographs = read_manifest(prepared, ["identity", "file", "kept"])
    embeddings = {source: unit_embeddings(found) for source, found in features.items()}
    gallery = Gallery(
        photographs=photographs[photographs["kept"].astype(bool)],
        dataset=dataset,
        samples={
            source: _images_of(path) for source, path in manifests.items() if not source.is_external
        },
        external={
            source: read_manifest(path, ["identity", "file"]).dropna(subset=["file"])
            for source, path in manifests.items()
            if source.is_external
        },
        folders={source: path.parent for source, path in manifests.items()},
        real=embeddings.pop(Source(REAL)),
        synthetic=embeddings,
    )
    settings, names, log = frozen.settings, Names.of(frozen), get_logger("figures")
    methods = sorted({source.method for source in manifests}, key=order_key)
    look: dict[str, Any] = {
        "labels": {method: names.method(method) for method in methods},
        "colours": colours_of(methods, settings.colours),
        "width": settings.width,
    }
    figures = {
        "distributions": distributions_figure(
            _scores(frozen, features, names), **look, bins=settings.bins, judge=names(real.stem)
        ),
        "samples": _samples(settings, gallery, names),
        "overview": _overview(settings, gallery, names),
        "pose": _pose(poses, names, look),
        "attributes": _attributes(settings, gallery, look),
        "groups": _groups(settings, gallery, groups, real.stem, look),
        "measures": measures_figure(_measures(scores, real.stem, names), **look),
    }
    made = []
    for name, figure in figures.items():
        for ending in (".svg", ".png"):
            made.append(out / f"{name}{ending}")
            save_figure(figure, made[-1], dpi=settings.dpi)
        log.info("%s written to %s", name, out)
    inputs = [real, *variant_features, *pose, prepared, *samples, *groups, *scores]
    write_record(record_place(out), frozen, made, inputs)


def _images_of(manifest: Path) -> pd.DataFrame:
    """A manifest's rows with an image; samples that a gate rejected have none."""
    frame = read_manifest(manifest, ["identity", "index", "file"])
    return frame[frame["file"].notna()]


def _scores(
    frozen: Frozen[FiguresSettings], features: Mapping[Source, Features], names: Names
) -> dict[str, dict[str, dict[str, Scores]]]:
    real, impostors = features[Source(REAL)], frozen.settings.impostors
    rows: dict[str, dict[str, dict[str, Scores]]] = {}
    variants = [source for source in features if not source.is_reference]
    for (base_model, prompts), sources in by_setting(variants).items():
        panels = rows.setdefault(f"{names(base_model)}\n{names(prompts)}", {})
        for versus in ("real", "synthetic"):
            panel = panels.setdefault(f"vs. {versus}", {})
            for source in sources:
                own = features[source].features, identities_of(features[source].files)
                if versus == "real" and set(own[1]).isdisjoint(identities_of(real.files)):
                    continue  # a set of others, which shows other people
                # The stream of the score step, so that figure and table are about the same pairs.
                rng = numpy_generator(frozen.seed, "score", "impostors", versus, source.name)
                theirs = (real.features, identities_of(real.files)) if versus == "real" else ()
                panel[source.method] = np.empty(0), np.empty(0)
                if own[1]:
                    found = compare(*own, *theirs, impostors=impostors, rng=rng)
                    panel[source.method] = found.genuine.scores, found.impostor.scores
    return rows


def _samples(settings: FiguresSettings, gallery: Gallery, names: Names) -> Figure:
    count = settings.samples_columns
    models = sorted({source.base_model for source in gallery.samples}, key=order_key)
    rows: list[GridRow] = []
    for identity in _identities(settings, gallery, settings.samples_identities):
        photographs = tuple(gallery.photograph_tiles(identity, count))
        rows += [GridRow("Photographs", photographs)] if photographs else []
        for base_model in models:
            sources = _shown(settings, gallery, base_model)
            # All methods got the same prompts, so they stand once, above the first one's images.
            headers = tuple(distinct_words(gallery.prompts_of(sources[0], identity, count)))
            for source in sources:
                label = names.method(source.method)
                if len(models) > 1:
                    label = f"{names(base_model)}\n{label}"
                tiles = tuple(gallery.sample_tiles(source, identity, count))
                rows.append(GridRow(label, tiles, headers))
                headers = ()
    for source in sorted(gallery.external, key=source_key):
        rows.append(
            GridRow(names.method(source.method), tuple(gallery.people_tiles(source, count)))
        )
    return grid_figure(rows, width=settings.width)


def _overview(settings: FiguresSettings, gallery: Gallery, names: Names) -> Figure:
    sources = _shown(settings, gallery, list(by_setting(gallery.samples))[-1][0])
    source = next((s for s in sources if s.method == settings.overview_method), sources[-1])
    shown = f"{names.method(source.method)}, {names(source.prompts)}"
    rows: list[GridRow] = []
    portrait: list[Tile] = []
    for identity in _identities(settings, gallery, settings.overview_identities):
        tiles = gallery.sample_tiles(source, identity, settings.overview_columns)
        portrait = gallery.portrait_tiles(identity)
        headers = (*(["Photograph"] if portrait else []), shown)
        rows.append(GridRow("", (*portrait, *tiles), () if rows else headers))
    return grid_figure(rows, width=settings.width, gap_after_first=bool(portrait))


def _pose(poses: Mapping[Source, Features], names: Names, look: Mapping[str, Any]) -> Figure:
    variants = [source for source in poses if not source.is_reference]
    rows = {
        f"{names(base_model)}, {names(prompts)}": {
            source.method: poses[source].features.reshape(-1, 3) for source in sources
        }
        for (base_model, prompts), sources in by_setting(variants).items()
    }
    return pose_figure(rows, poses[Source(REAL)].features, **look)


def _attributes(settings: FiguresSettings, gallery: Gallery, look: Mapping[str, Any]) -> Figure:
    """Per method over all base models and prompt sets."""
    patterns, tables = ATTRIBUTES | settings.attributes, {}
    for method in dict.fromkeys(source.method for source in gallery.samples):
        frame = pd.concat(gallery.similarities(s) for s in gallery.samples if s.method == method)
        tables[method] = attribute_rows(frame, patterns)
    labels = {method: look["labels"][method] for method in tables}
    return attributes_figure(tables, **{**look, "labels": labels})


def _groups(
    settings: FiguresSettings,
    gallery: Gallery,
    tables: Sequence[Path],
    judge: str,
    look: Mapping[str, Any],
) -> Figure:
    """Per method of the last base model, and of the photographs, by the figures' judge."""
    read = {source_of(path, "groups"): read_csv(path, GROUP_COLUMNS) for path in tables}
    own = (of for of in read if not (of.is_reference or of.is_external))
    models = [base_model for base_model, _ in by_setting(own)]
    sources = _shown(settings, gallery, models[-1]) if models else []
    frames = {
        source.method: read[source][read[source]["recogniser"] == judge]
        for source in (Source(REAL), *sources)
        if source in read
    }
    return groups_figure(frames, **look)


def _measures(
    tables: Sequence[Path], judge: str, names: Names
) -> dict[str, dict[str, dict[str, float]]]:
    """Row label to method to measures, those of identity by the figures' judge."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in (row for path in tables for row in read_csv(path).to_dict("records")):
        if "versus" in row and (row["versus"], row["recogniser"]) != ("real", judge):
            continue
        setting = ", ".join(names(str(row[key])) for key in SETTING if row[key] != NOT_APPLICABLE)
        own = found.setdefault(setting, {}).setdefault(str(row["method"]), {})
        own |= {key: float(row[key]) for key in MEASURE_AXES if key in row}
    return found


def _shown(settings: FiguresSettings, gallery: Gallery, base_model: str) -> list[Source]:
    """Variants of a base model by the prompts that the grids show."""
    found = {
        prompts: sources
        for (model, prompts), sources in by_setting(gallery.samples).items()
        if model == base_model
    }
    return found.get(settings.prompts) or list(found.values())[-1]


def _identities(settings: FiguresSettings, gallery: Gallery, count: int) -> list[str]:
    available = gallery.identities()
    unknown = [name for name in settings.identities if name not in available]
    if unknown or not available:
        what = ", ".join(unknown) or "any identity"
        raise StepError(
            f"there are no photographs and samples of {what}; available: {', '.join(available)}"
        )
    return list(settings.identities or available)[:count]


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
