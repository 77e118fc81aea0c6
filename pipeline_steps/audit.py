"""Audit whom a variant's images show: swaps, collisions, copies of photographs, strangers.

In:  embeddings by one recogniser of the variant (--variant-features), the photographs (--real) and
     the in-the-wild set (--wild, optional), at features/<source>/<recogniser>.safetensors; the
     aligned images of all three (--aligned, --real-aligned, --wild-aligned).
Out: beside each other: <out>.csv, a row per image with its nearest person, closest photograph and
     closest wild image; <out>.pairs.csv, the most suspicious image pairs of each check;
     <out>.summary.csv, one row of counts and verdicts; <out>.html, the pairs to look at, one page
     that needs nothing but itself.

Source: thresholds at a false match rate as in ISO/IEC 19795-1:2021; near copies after Carlini et
al., "Extracting Training Data from Diffusion Models", USENIX Security 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline_steps.evidence.audit.audit import SAMPLE_COLUMNS, SUMMARY_COLUMNS, Evidence, audit
from pipeline_steps.evidence.audit.copies import (
    SIDE,
    Patches,
    band_passed,
    copy_threshold,
    nearest_photographs,
)
from pipeline_steps.evidence.audit.suspicious_pairs import GENERATED, PAIR_COLUMNS, suspicious_pairs
from pipeline_steps.evidence.report.pair_page import render_pairs, with_pictures
from pipeline_steps.evidence.scores.resemblance import Faces, faces_of, thresholds_from
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import load_features
from pipeline_steps.naming import REAL, WILD
from pipeline_steps.runtime.command_line import step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import run_main
from pipeline_steps.study.record import check_same_extractor, record_place, write_record
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.evidence import AuditSettings
from pipeline_steps.study.sources import identities_of, identity_of, source_of


def run(
    frozen: Frozen[AuditSettings],
    *,
    variant_features: Path,
    real: Path,
    aligned: Path,
    real_aligned: Path,
    out: Path,
    wild: Path | None = None,
    wild_aligned: Path | None = None,
) -> dict[str, object]:
    """Audit one variant and write what was found.

    Args:
        frozen: the step's configuration.
        variant_features, real, wild: embeddings by the same recogniser.
        aligned, real_aligned, wild_aligned: folders of the aligned images.
        out: path of the outputs without ending.

    Returns:
        The row of the summary.

    Raises:
        StepError: different recognisers, no images, or photographs of a single person.
    """
    settings, log = frozen.settings, get_logger("audit")
    recognisers = {path.stem for path in (variant_features, real, wild) if path is not None}
    if len(recognisers) > 1:
        raise StepError(
            f"an audit takes one recogniser, but got features of {', '.join(sorted(recognisers))}"
        )
    features = [path for path in (variant_features, real, wild) if path is not None]
    check_same_extractor([(path, load_features(path).metadata) for path in features])
    source = source_of(variant_features, "features")
    images, photographs = _faces(variant_features), _faces(real)
    strangers = _faces(wild) if wild is not None else None
    try:
        limits = thresholds_from(
            photographs, strangers, fmr=settings.fmr, search_rate=settings.search_rate
        )
    except ValueError as error:
        raise StepError(f"{real} cannot set the audit's thresholds: {error}") from error
    patches, photograph_patches = _patches(images, aligned), _patches(photographs, real_aligned)
    pixels = np.asarray(list(photograph_patches.values()), np.float32).reshape(-1, SIDE, SIDE)
    nearest = nearest_photographs(pixels, identities_of(list(photograph_patches)))
    evidence = Evidence(
        images=images,
        photographs=photographs,
        wild=strangers,
        patches=patches,
        photograph_patches=photograph_patches,
        thresholds=limits,
        pixel_threshold=copy_threshold(nearest, settings.copy_ratio),
        fmr=settings.fmr,
        search_rate=settings.search_rate,
    )
    result = audit(evidence)
    summary = {**source.columns, "recogniser": real.stem, **result.summary}
    pairs = suspicious_pairs(evidence, result, settings.pairs)
    write_csv(_beside(out, ".csv"), result.samples, SAMPLE_COLUMNS)
    write_csv(_beside(out, ".pairs.csv"), pairs, PAIR_COLUMNS)
    write_csv(_beside(out, ".summary.csv"), [summary], SUMMARY_COLUMNS)
    folders = {GENERATED: aligned, REAL: real_aligned, WILD: wild_aligned}
    page = render_pairs(frozen.study, source, summary, with_pictures(pairs, folders), settings)
    write_text(_beside(out, ".html"), page)
    made = [_beside(out, ending) for ending in (".csv", ".pairs.csv", ".summary.csv", ".html")]
    write_record(record_place(made[0]), frozen, made, features)
    log.info("%s: %s", source.name, summary["sentence"])
    return summary


def _faces(path: Path) -> Faces:
    features = load_features(path)
    try:
        return faces_of(features.features, identities_of(features.files), features.files)
    except ValueError as error:
        raise StepError(f"{path} cannot be audited: {error}") from error


def _patches(faces: Faces, folder: Path) -> dict[str, Patches]:
    """Pixels of each image for the search for copies; what cannot be read is left out and said."""
    found: dict[str, Patches] = {}
    for file in faces.files:
        try:
            image = read_image(folder / file)
            found[file] = band_passed(image[None])[0]
        except (BadImage, OSError, ValueError) as error:
            what = f"{identity_of(file)}: {folder / file}"
            get_logger("audit").warning("%s is not compared for copies: %s", what, error)
    return found


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("audit", __doc__)
    for flag, description, required in (
        ("--variant-features", "embeddings of the generated images", True),
        ("--real", "embeddings of the photographs", True),
        ("--wild", "embeddings of the in-the-wild images", False),
        ("--aligned", "folder of the aligned generated images", True),
        ("--real-aligned", "folder of the aligned photographs", True),
        ("--wild-aligned", "folder of the aligned in-the-wild images", False),
        ("--out", "path of the outputs, without ending", True),
    ):
        parser.add_argument(flag, type=Path, required=required, help=description)
    arguments = parser.parse_args(argv)
    paths = {key: value for key, value in vars(arguments).items() if key != "config"}
    run(load_frozen(arguments.config, AuditSettings), **paths)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
