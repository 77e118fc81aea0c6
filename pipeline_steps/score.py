"""Score one set of images: quality, identity or head pose (the paper's Tables 1 and 2).

In:  feature files of the set itself (--variant-features), of the consented photographs (--real) and
     of the in-the-wild reference (--wild), one file per extractor, named
     features/<source>/<extractor>.safetensors. Which extractor feeds which metric stands in the
     configuration. Features exist for kept faces only, so the numbers are about those.
     Without --variant-features the reference sets themselves are scored: quality of each against
     the other and against its own other half, identity of the real images among themselves, pose of
     both.
Out: one CSV with the columns of its kind:
     quality   one row per reference; n_synthetic and n_real as compared. `fid` holds the Fréchet
               distance of the extractor that `extractors` names (FID only with inception_v3).
               face_quality_* and vendi_within_identity are over all kept images.
     identity  rows versus synthetic and, where the set shows people of the photographs, versus
               real, or, where it shows people who do not exist, versus target, their anchors,
               one per recogniser, with intervals of EER and FDR by leaving out identities.
     pose      pitch, yaw and roll in degrees, number of images, and the estimator's name.
     Where a number cannot be computed its cell is empty, and `reasons` says why.
     Beside it <name>.record.json: the hashes of what it was computed from.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4; the metrics' own papers stand in
pipeline_steps.metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline_steps.evidence.scores.identity import (
    IDENTITY_COLUMNS,
    REPLICATE_COLUMNS,
    identity_numbers,
)
from pipeline_steps.evidence.scores.quality import (
    POSE_COLUMNS,
    QUALITY_COLUMNS,
    Sets,
    equal_sizes,
    halves,
    pose_row,
    quality_row,
)
from pipeline_steps.evidence.scores.sets import ImageSet, Loaded, Scored
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import load_features
from pipeline_steps.naming import REASONS
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_same_extractor, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ScoreSettings
from pipeline_steps.study.source import Source

COLUMNS = {"quality": QUALITY_COLUMNS, "identity": IDENTITY_COLUMNS, "pose": POSE_COLUMNS}

Row = dict[str, Any]
Header = tuple[Path, dict[str, str]]


def run(
    frozen: Frozen[ScoreSettings],
    *,
    kind: Literal["quality", "identity", "pose"],
    out: Path,
    variant_features: Sequence[Path] = (),
    real: Sequence[Path] = (),
    wild: Sequence[Path] = (),
    targets: Path | None = None,
    replicates: Path | None = None,
) -> list[Row]:
    """Score one set and write its CSV.

    Args:
        frozen: The step's configuration; where its variant names a base model, method and prompts,
            they have to be those of the features.
        kind: Which table the rows are for.
        out: CSV to write.
        variant_features: Features of the set; none scores the reference sets.
        real: Features of the consented photographs.
        wild: Features of the in-the-wild reference.
        targets: Kind identity only: directions of people who do not exist; images are compared
            with them, too, by the recogniser in whose space they lie.
        replicates: Kind identity only: Parquet file for the bootstrap replicates, from which
            differences between methods get paired intervals.

    Returns:
        The rows.

    Raises:
        StepError: a missing extractor, or mixed sources.
    """
    always = frozen.settings.extractors(kind, prompted=False)
    further = [name for name in frozen.settings.extractors(kind) if name not in always]
    loaded = Loaded(always, of_prompts=further)
    variant = loaded.set_of(variant_features, "--variant-features")
    # Nobody in the in-the-wild set has two images, so identity has no use for it.
    named = {"real": real, "wild": () if kind == "identity" else wild}
    references = [
        scored
        for name, paths in named.items()
        if (scored := loaded.set_of(paths, f"--{name}", Source(name))) is not None
    ]
    check_same_extractor(loaded.headers)
    _check_variant(frozen, variant)
    draws: list[Row] = []
    try:
        if kind == "quality":
            rows = _quality(frozen, variant, references)
        elif kind == "identity":
            anchors = {} if targets is None else _anchors(targets, loaded.headers)
            rows, draws = _identity(frozen, variant, references, anchors)
        else:
            rows = _pose(frozen.settings.pose.extractor, variant, references)
    except ValueError as error:
        names = ", ".join(str(path) for path in (*variant_features, *real, *wild))
        raise StepError(f"cannot score {kind} from {names}: {error}") from error
    write_csv(out, rows, COLUMNS[kind])
    if replicates is not None:
        write_manifest(replicates, draws, REPLICATE_COLUMNS)
    made = [out] if replicates is None else [out, replicates]
    read = [path for path, _ in loaded.headers] + ([] if targets is None else [targets])
    write_record(record_place(out), frozen, made, read)
    log = get_logger("score")
    for row in rows:
        if row.get(REASONS):
            log.warning("%s has empty cells: %s", out, row[REASONS])
    log.info("%s: %d rows written to %s", kind, len(rows), out)
    return rows


def _quality(
    frozen: Frozen[ScoreSettings], variant: Scored | None, references: Sequence[Scored]
) -> list[Row]:
    """One row per (set, reference)."""
    settings = frozen.settings.quality
    if not references:
        raise StepError("quality needs a reference set: pass --real, --wild or both")
    rows = []
    for source, images in [variant] if variant else references:
        for reference, reference_images in references:
            pair = reference_images, images
            if source == reference:
                pair = halves(images, numpy_generator(frozen.seed, "score", "halves", source.name))
            # A set's draw depends on the set alone, so all variants meet the same reference images.
            real, synthetic = equal_sizes(
                *pair,
                settings,
                numpy_generator(frozen.seed, "score", "draw", reference.name),
                numpy_generator(frozen.seed, "score", "draw", "synthetic", source.name),
            )
            rng = partial(numpy_generator, frozen.seed, "score", reference.name)
            numbers = quality_row(Sets(real, synthetic, images, settings, rng))
            rows.append(source.columns | {"reference": reference.name} | numbers)
    return rows


def _identity(
    frozen: Frozen[ScoreSettings],
    variant: Scored | None,
    references: Sequence[Scored],
    anchors: Mapping[str, ImageSet],
) -> tuple[list[Row], list[Row]]:
    """One row per (versus, recogniser), and the bootstrap replicates behind them."""
    if not references:
        raise StepError("identity needs the consented photographs: pass --real")
    settings = frozen.settings.identity
    source, images = variant or references[0]
    photographs = references[0][1]
    rows: list[Row] = []
    draws: list[Row] = []
    # A set of others may show other people than the photographs.
    shared = not set(images.identities).isdisjoint(photographs.identities)
    opponents = ("real", "synthetic") if shared or not len(images) else ("synthetic",)
    for recogniser in settings.recognisers:
        others = {"real": photographs if variant else None, "target": anchors.get(recogniser)}
        targets = ("target",) if recogniser in anchors else ()
        for versus in (*targets, *opponents) if variant else ("real",):
            numbers, replicates = identity_numbers(
                images,
                others.get(versus),
                recogniser,
                settings,
                impostor_rng=numpy_generator(
                    frozen.seed, "score", "impostors", versus, source.name
                ),
                # The same draws for every set: differences between sets are then paired.
                rng=numpy_generator(frozen.seed, "score", "bootstrap", "identities"),
            )
            names = source.columns | {"versus": versus, "recogniser": recogniser}
            rows.append(names | numbers)
            draws.extend(names | row for row in replicates)
    return rows, draws


def _anchors(targets: Path, headers: Sequence[Header]) -> dict[str, ImageSet]:
    """The anchors, by the recogniser of the features that they are directions of."""
    found = load_features(targets, key="embeddings")
    network = found.metadata.get("weights_sha256")
    return {
        path.stem: ImageSet(found.files, found.files, {path.stem: found.features})
        for path, header in headers
        if header.get("weights_sha256") == network
    }


def _pose(extractor: str, variant: Scored | None, references: Sequence[Scored]) -> list[Row]:
    """One row per set."""
    scored = [variant] if variant else references
    if not scored:
        raise StepError("pose needs a set of images: pass --variant-features, --real or --wild")
    return [
        source.columns
        | pose_row(images.features[extractor], images.identities)
        | {"n": len(images), "extractor": extractor}
        for source, images in scored
    ]


def _check_variant(frozen: Frozen[ScoreSettings], variant: Scored | None) -> None:
    """Refuse features of another variant than the configuration is for."""
    if variant is None:
        return
    for column, found in variant[0].columns.items():
        wanted = frozen.variant.get(column, found)
        if wanted != found:
            raise StepError(
                f"the configuration is for {column} {wanted}, but the features are of "
                f"{variant[0].name}"
            )


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
