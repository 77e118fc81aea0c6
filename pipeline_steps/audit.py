"""Audit whom a variant's images show: swaps, collisions, copies of photographs, strangers.

Out: beside each other: <out>.csv, a row per image with its nearest person, closest photograph and
     closest wild image; <out>.pairs.csv, the most suspicious image pairs of each check;
     <out>.summary.csv, one row of counts and verdicts; <out>.html, the pairs to look at, one page
     that needs nothing but itself.

Source: thresholds at a false match rate as in ISO/IEC 19795-1:2021; near copies after Carlini et
al., "Extracting Training Data from Diffusion Models", USENIX Security 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.evidence.audit.checks import (
    GENERATED,
    PAIR_COLUMNS,
    SAMPLE_COLUMNS,
    SUMMARY_COLUMNS,
    VERDICTS,
    Evidence,
    audit,
    not_audited,
    suspicious_pairs,
)
from pipeline_steps.evidence.audit.copies import (
    SIDE,
    Patches,
    band_passed,
    copy_threshold,
    nearest_photographs,
)
from pipeline_steps.evidence.audit.resemblance import Faces, faces_of, thresholds_from
from pipeline_steps.evidence.names import Names
from pipeline_steps.evidence.report.page import render, with_pictures
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import load_features
from pipeline_steps.metrics.arrays import Undefined, similarity_to_own
from pipeline_steps.metrics.references import Fidelity, fidelity
from pipeline_steps.naming import REAL, WILD, identities_of, identity_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import record_place, source_of
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_same_extractor, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import AuditSettings

Picture = NDArray[np.uint8]
AT_ONCE = 8192  # images of which what was read is kept for a further look
ENDINGS = (".csv", ".pairs.csv", ".summary.csv", ".html")


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
        variant_features: Embeddings of the generated images.
        real: Embeddings of the photographs, by the same recogniser.
        aligned: Folder of the aligned generated images.
        real_aligned: Folder of the aligned photographs.
        out: Path of the outputs, without ending.
        wild: Embeddings of the in-the-wild images.
        wild_aligned: Folder of the aligned in-the-wild images.

    Returns:
        The row of the summary.

    Raises:
        StepError: different recognisers, or unfit embeddings.
    """
    settings, log = frozen.settings, get_logger("audit")
    features = [path for path in (variant_features, real, wild) if path is not None]
    recognisers = sorted({path.stem for path in features})
    if len(recognisers) > 1:
        raise StepError(
            f"an audit takes one recogniser, but got features of {', '.join(recognisers)}"
        )
    check_same_extractor([(path, load_features(path).metadata) for path in features])
    source = source_of(variant_features, "features")
    pairs: list[dict[str, Any]] = []
    odd: list[str] = []
    try:
        images, photographs = _faces(variant_features), _faces(real)
        strangers = _faces(wild) if wild is not None else None
        rates = {"fmr": settings.fmr, "search_rate": settings.search_rate}
        limits = thresholds_from(photographs, strangers, **rates)
    except Undefined as error:
        result = not_audited(f"not audited: {error}", settings.fmr)
        log.warning("%s", result.summary["sentence"])
    else:
        pictures = _pictures(photographs, real_aligned)
        photograph_patches = {file: band_passed(one[None])[0] for file, one in pictures.items()}
        read = lru_cache(AT_ONCE)(partial(_read, aligned))
        pixels = np.asarray(list(photograph_patches.values()), np.float32).reshape(-1, SIDE, SIDE)
        nearest = nearest_photographs(pixels, identities_of(list(photograph_patches)))
        evidence = Evidence(
            images=images,
            photographs=photographs,
            wild=strangers,
            patches=partial(_patch, read),
            photograph_patches=photograph_patches,
            thresholds=limits,
            fidelity=_compared(images, read, pictures),
            pixel_threshold=copy_threshold(nearest, settings.copy_ratio),
            **rates,
        )
        result = audit(evidence)
        pairs = suspicious_pairs(evidence, result, settings.pairs)
        own, others = similarity_to_own(photographs.embeddings, list(photographs.identities))
        odd = [photographs.files[index] for index in np.flatnonzero(own < others)]
        if odd:
            log.warning("photographs less like the person's others than like another's: %s", odd)
    summary = source.columns | {"recogniser": real.stem} | result.summary
    names, folders = Names.of(frozen), {GENERATED: aligned, REAL: real_aligned, WILD: wild_aligned}
    page = render(
        "page.audit.html.j2",
        study=frozen.study,
        variant=names.variant(source),
        recogniser=names(real.stem),
        summary=summary,
        verdicts=VERDICTS,
        pairs=with_pictures(pairs, folders),
        odd_photographs=odd,
    )
    made = [out.with_name(f"{out.name}{ending}") for ending in ENDINGS]
    write_csv(made[0], result.samples, SAMPLE_COLUMNS)
    write_csv(made[1], pairs, PAIR_COLUMNS)
    write_csv(made[2], [summary], SUMMARY_COLUMNS)
    write_text(made[3], page)
    write_record(record_place(made[0]), frozen, made, features)
    log.info("%s: %s", source.name, summary["sentence"])
    return summary


def _faces(path: Path) -> Faces:
    features = load_features(path)
    try:
        return faces_of(features.features, identities_of(features.files), features.files)
    except Undefined as error:
        raise Undefined(f"{path} has no image") from error
    except ValueError as error:
        raise StepError(f"{path} cannot be audited: {error}") from error


def _pictures(faces: Faces, folder: Path) -> dict[str, Picture]:
    """Pixels of each image; what cannot be read is left out and said."""
    read = ((file, _read(folder, file)) for file in faces.files)
    return {file: image for file, image in read if image is not None}


def _compared(
    faces: Faces, read: Callable[[str], Picture | None], photographs: Mapping[str, Picture]
) -> dict[str, Fidelity]:
    """How well each image agrees with a photograph of the person whom it is meant to show."""
    of_person: dict[str, list[Picture]] = {}
    for file, picture in photographs.items():
        of_person.setdefault(identity_of(file), []).append(picture)
    stacked = {name: np.stack(pictures) for name, pictures in of_person.items()}
    agreement: dict[str, Fidelity] = {}
    for file in faces.files:
        own = stacked.get(identity_of(file))
        if own is not None and (image := read(file)) is not None:
            agreement[file] = fidelity(image, own)
    return agreement


def _patch(read: Callable[[str], Picture | None], file: str) -> Patches | None:
    """Pixels of an image for the search for copies."""
    image = read(file)
    return None if image is None else band_passed(image[None])[0]


def _read(folder: Path, file: str) -> Picture | None:
    """An aligned face uint8 [112, 112, 3]; None, and a warning, where it cannot be read."""
    try:
        image = read_image(folder / file)
        if image.shape == (SIDE, SIDE, 3):
            return image
        error: object = f"{image.shape[1]}x{image.shape[0]} pixels"
    except (BadImage, OSError) as problem:
        error = problem
    what = f"{identity_of(file)}: {folder / file}"
    get_logger("audit").warning("%s is not compared for copies: %s", what, error)
    return None


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
