"""Draw the study's figures (the paper's Figures 3, 4 and 1, and coverage).

In:  embeddings by one recogniser: of the photographs (--real) and of every variant
     (--variant-features), at features/<source>/<recogniser>.safetensors; head poses of the same
     sets (--pose), at features/<source>/<extractor>.safetensors; the prepared photographs
     (--dataset) and the manifests of the samples (--samples). Out: in --out, as SVG and PNG:
     distributions  genuine and impostor similarity of every method, against the real images and
                    among the synthetic ones, a row per base model and prompt set (Figure 3)
     samples        photographs and every method's images of the same prompts, with the mean
                    similarity to the identity's photographs under each image (Figure 4)
     overview       identities beside their generated images (Figure 1)
     pose           yaw and pitch of every method's images over those of the photographs
     attributes     similarity and faces found, per expression and place that prompts name
     all.record.json  hashes of what they were drawn from

Source: Tomasevic et al., "ID-Booth", FG 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline_steps.evidence.figures.coverage import (
    ATTRIBUTES,
    PoseCloud,
    attribute_tables,
    attributes_figure,
    pose_figure,
)
from pipeline_steps.evidence.figures.gallery import Gallery, distinct_words, unit_embeddings
from pipeline_steps.evidence.figures.plots import (
    Distribution,
    GridRow,
    Panel,
    distributions_figure,
    grid_figure,
)
from pipeline_steps.evidence.origins import check_features
from pipeline_steps.evidence.tables.names import Names, order_key
from pipeline_steps.evidence.tables.variants import method_name, methods_of, settings_of
from pipeline_steps.io.figures import save_figure
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import Features, load_features
from pipeline_steps.metrics.pairs import compare_between, compare_within
from pipeline_steps.runtime.command_line import add_paths, step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.command import run_main
from pipeline_steps.study.record import record_place, write_record
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.evidence import FiguresSettings
from pipeline_steps.study.sources import Source, identities_of, source_of

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
) -> None:
    """Draw and write all figures.

    Args:
        frozen: the step's configuration.
        dataset: folder of the prepare step.
        real: embeddings of the photographs.
        variant_features: embeddings of every variant, by the same recogniser.
        samples: manifests of every variant's samples.
        pose: head poses of the photographs and of every variant.
        out: folder to write into.

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
    folders = {source_of(path, "samples"): path.parent for path in samples}
    if not features or set(features) != set(folders):
        odd = sorted(source.name for source in set(features) ^ set(folders)) or ["none"]
        raise StepError(f"figures need features and samples of the same variants: {', '.join(odd)}")
    photographs = read_manifest(dataset / "manifest.parquet", ["identity", "file", "kept"])
    photograph_features = load_features(real)
    gallery = Gallery(
        photographs=photographs[photographs["kept"].astype(bool)],
        dataset=dataset,
        samples={
            source: _images_of(folder / "manifest.parquet") for source, folder in folders.items()
        },
        folders=folders,
        real=unit_embeddings(photograph_features),
        synthetic={source: unit_embeddings(found) for source, found in features.items()},
    )
    poses = {source_of(path, "features"): load_features(path) for path in pose}
    if set(poses) != {Source("real"), *features}:
        raise StepError("figures need head poses of the photographs and of exactly the variants")
    manifests = [dataset / "manifest.parquet", *samples]
    check_features([real, *variant_features], pose, manifests)
    settings, log = frozen.settings, get_logger("figures")
    drawn = (
        ("distributions", _distributions(frozen, photograph_features, features, real.stem)),
        ("samples", _samples(settings, gallery)),
        ("overview", _overview(settings, gallery)),
        ("pose", _pose(settings, poses)),
        ("attributes", _attributes(settings, gallery)),
    )
    for name, figure in drawn:
        for ending in (".svg", ".png"):
            save_figure(figure, out / f"{name}{ending}", dpi=settings.dpi)
        log.info("%s written to %s", name, out)
    made = [out / f"{name}{ending}" for name, _ in drawn for ending in (".svg", ".png")]
    write_record(record_place(out), frozen, made, [real, *variant_features, *pose, *manifests])


def _images_of(manifest: Path) -> pd.DataFrame:
    """A manifest's rows with an image; drawings that a gate rejected have none."""
    frame = read_manifest(manifest, ["identity", "index", "file"])
    return frame[frame["file"].notna()]


def _distributions(
    frozen: Frozen[FiguresSettings],
    real: Features,
    features: dict[Source, Features],
    recogniser: str,
) -> Figure:
    settings, names = frozen.settings, Names(frozen.settings.labels)
    rows = []
    for base_model, prompts in settings_of(features):
        against: dict[str, list[Distribution]] = {"real": [], "synthetic": []}
        for source in methods_of(features, base_model, prompts):
            found = features[source]
            owners = identities_of(found.files)
            for versus, drawn in against.items():
                # The draw of the score step, so that figure and table are about the same pairs.
                rng = numpy_generator(frozen.seed, "score", "impostors", versus, source.name)
                comparison = (
                    compare_between(
                        found.features,
                        owners,
                        real.features,
                        identities_of(real.files),
                        impostors=settings.impostors,
                        rng=rng,
                    )
                    if versus == "real"
                    else compare_within(
                        found.features, owners, impostors=settings.impostors, rng=rng
                    )
                )
                drawn.append(
                    Distribution(
                        source.method,
                        method_name(names, source.method),
                        comparison.genuine.scores,
                        comparison.impostor.scores,
                    )
                )
        panels = [Panel(f"vs. {versus}", tuple(drawn)) for versus, drawn in against.items()]
        rows.append((f"{names(base_model)}\n{names(prompts)}", panels))
    return distributions_figure(
        rows,
        width=settings.width,
        bins=settings.bins,
        colours=settings.colours,
        judge=names(recogniser),
    )


def _samples(settings: FiguresSettings, gallery: Gallery) -> Figure:
    names, count = Names(settings.labels), settings.samples_columns
    models = sorted({source.base_model for source in gallery.samples}, key=order_key)
    rows: list[GridRow] = []
    for identity in _identities(settings, gallery, settings.samples_identities):
        rows.append(GridRow("Photographs", tuple(gallery.photograph_tiles(identity, count))))
        for base_model in models:
            prompts = _shown_prompts(settings, gallery, base_model)
            sources = methods_of(gallery.samples, base_model, prompts)
            # All methods got the same prompts, so they stand once, above the first one's images.
            headers = tuple(distinct_words(gallery.prompts_of(sources[0], identity, count)))
            for source in sources:
                label = method_name(names, source.method)
                if len(models) > 1:
                    label = f"{names(base_model)}\n{label}"
                tiles = tuple(gallery.sample_tiles(source, identity, count))
                rows.append(GridRow(label, tiles, headers))
                headers = ()
    return grid_figure(rows, width=settings.width)


def _overview(settings: FiguresSettings, gallery: Gallery) -> Figure:
    base_model = settings_of(gallery.samples)[-1][0]
    prompts = _shown_prompts(settings, gallery, base_model)
    sources = methods_of(gallery.samples, base_model, prompts)
    source = next((s for s in sources if s.method == settings.overview_method), sources[-1])
    names = Names(settings.labels)
    headers: tuple[str, ...] = (
        "Photograph",
        f"{method_name(names, source.method)}, {names(source.prompts)}",
    )
    rows = []
    for identity in _identities(settings, gallery, settings.overview_identities):
        tiles = gallery.sample_tiles(source, identity, settings.overview_columns)
        rows.append(GridRow("", (gallery.portrait_tile(identity), *tiles), headers))
        headers = ()
    return grid_figure(rows, width=settings.width, gap_after_first=True)


def _pose(settings: FiguresSettings, poses: dict[Source, Features]) -> Figure:
    names = Names(settings.labels)

    def cloud(source: Source, label: str) -> PoseCloud:
        angles = poses[source].features  # pitch, yaw, roll
        return PoseCloud(source.method, label, angles[:, 1], angles[:, 0])

    variants = [source for source in poses if not source.is_reference]
    rows = [
        (
            f"{names(base_model)}, {names(prompts)}",
            [
                cloud(source, method_name(names, source.method))
                for source in methods_of(variants, base_model, prompts)
            ],
        )
        for base_model, prompts in settings_of(variants)
    ]
    real = cloud(Source("real"), names("real"))
    return pose_figure(rows, real, width=settings.width, colours=settings.colours)


def _attributes(settings: FiguresSettings, gallery: Gallery) -> Figure:
    """Per method over all base models and prompt sets."""
    names = Names(settings.labels)
    methods = sorted({source.method for source in gallery.samples}, key=order_key)
    tables = attribute_tables(gallery, methods, ATTRIBUTES | settings.attributes)
    labels = {method: method_name(names, method) for method in methods}
    return attributes_figure(tables, labels, width=settings.width, colours=settings.colours)


def _shown_prompts(settings: FiguresSettings, gallery: Gallery, base_model: str) -> str:
    available = [prompts for model, prompts in settings_of(gallery.samples) if model == base_model]
    return settings.prompts if settings.prompts in available else available[-1]


def _identities(settings: FiguresSettings, gallery: Gallery, count: int) -> list[str]:
    available = gallery.identities()
    unknown = [name for name in settings.identities if name not in available]
    if unknown or not available:
        what = ", ".join(unknown) or "any identity"
        raise StepError(
            f"there are no photographs and samples of {what}; available: {', '.join(available)}"
        )
    return list(settings.identities or available)[:count]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("figures", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the prepare step")
    parser.add_argument("--real", type=Path, required=True, help="embeddings of the photographs")
    add_paths(parser, "--variant-features", "embeddings of the variants", required=True)
    add_paths(parser, "--samples", "manifests of the variants' samples", required=True)
    add_paths(parser, "--pose", "head poses of the photographs and of the variants", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args(argv)
    run(
        load_frozen(arguments.config, FiguresSettings),
        dataset=arguments.dataset,
        real=arguments.real,
        variant_features=arguments.variant_features,
        samples=arguments.samples,
        pose=arguments.pose,
        out=arguments.out,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
