"""Extract features of aligned faces.

In:  aligned/<source> (manifest.parquet and the images it keeps); the extractor's weights; of a
     variant also samples/<source>, whose whole images and prompts are read by weights of the task
     prompt.
Out: features/<source>/<extractor>.safetensors   `features` float32 [n, d], a row for every kept
                                                 face in the manifest's order; in the metadata
                                                 `files` as in the manifest, `images` (a hash of
                                                 each image), `sources` (hash of each image that
                                                 a face was aligned from), extractor, hash of its
                                                 weights, preprocessing.
     features/<source>/.<extractor>.safetensors  the same, kept for the next run: images that were
                                                 extracted by the same weights and preprocessing
                                                 are not extracted again. What left the set leaves
                                                 this file too.
     What the columns are depends on the extractor's task: recogniser, embeddings of length 1;
     quality, one number; pose, pitch, yaw and roll in degrees; features, the network's own;
     prompt, one number, below 0 where the prompt asks for nothing that is read.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4.1, and what stands with each extractor in
pipeline_steps.faces.extractors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FeaturesSettings
from pipeline_steps.study.versions import made_with, versions_behind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline_steps.faces.extractors import AlignedFaces

ALIGNED_SIDE = 112  # pixels
COLOUR_SAMPLE = 64  # faces, about, on which the colour order is judged


def run(
    frozen: Sequence[Frozen[FeaturesSettings]],
    *,
    aligned: Path,
    out: Sequence[Path],
    samples: Path | None = None,
    device: str,
    batch_size: int = 64,
) -> list[int]:
    """Extract the features of a set's kept faces, by one extractor after the other.

    Args:
        frozen: The step's configurations; their weights have the role "extractor".
        aligned: Folder with manifest.parquet and the aligned images.
        out: The safetensors file to write for each configuration.
        samples: Manifest of the images that the faces were aligned from, with their prompts.
        device: "cpu" or "cuda".
        batch_size: Images at once; changes no result.

    Returns:
        Number of images that each extractor was run on; the others were known from an earlier run.

    Raises:
        StepError: not as many files as configurations, no extractor is named or its weights are
            unfit, the images look like BGR, or one is missing, broken or of another size.
    """
    if len(frozen) != len(out):
        raise StepError(
            f"{len(frozen)} configurations but {len(out)} files to write: name one --out for each "
            "--config"
        )
    return [
        extract(one, aligned, place, samples, device, batch_size)
        for one, place in zip(frozen, out, strict=True)
    ]


def extract(
    frozen: Frozen[FeaturesSettings],
    aligned: Path,
    out: Path,
    samples: Path | None,
    device: str,
    batch_size: int,
) -> int:
    """Extract the features by one extractor; see :func:`run`."""
    import numpy as np

    from pipeline_steps.faces.extractors import load_extractor
    from pipeline_steps.faces.prompts import TASK, load_reader
    from pipeline_steps.io.weights import made_by
    from pipeline_steps.study.store import Rows

    weights = frozen.weights.get("extractor")
    if weights is None:
        raise StepError("the configuration names no weights with the role extractor")
    manifest = read_manifest(aligned / "manifest.parquet", ("file", "landmarks", "kept"))
    kept = manifest[manifest["kept"]]
    if kept.empty:
        get_logger("features").warning("%s keeps no face: look at reason in its manifest", aligned)
    elif frozen.settings.check_colour:
        check_colours(aligned, kept)
    if asks := weights.task == TASK:
        reader = load_reader(weights, device)
        kept = with_prompts(kept, aligned, samples)
        preprocessing = reader.preprocessing
    else:
        extractor = load_extractor(weights, device)
        preprocessing = extractor.preprocessing
    store = Rows(
        out,
        key(frozen, preprocessing=preprocessing),
        made_with(frozen),
        extractor=weights.name,
        task=weights.task,
        **made_by(weights, preprocessing),
    )
    files = [str(file) for file in kept["file"]]
    noted = kept["sha256"] if "sha256" in kept.columns else [None] * len(files)
    hashes = [
        image_hash(aligned / file, landmarks, digest)
        for file, landmarks, digest in zip(files, kept["landmarks"], noted, strict=True)
    ]
    if asks:
        hashes = [
            f"{image}:{hashlib.sha256(prompt.encode()).hexdigest()}"
            for image, prompt in zip(hashes, kept["prompt"], strict=True)
        ]
    fresh = store.missing(hashes)
    starts = range(0, len(fresh), batch_size)
    for start in progress(starts, description=weights.name, unit="batch"):
        rows = fresh[start : start + batch_size]
        own = kept.iloc[rows]
        if asks:
            found = reader.score(read_whole(own), list(own["prompt"]))
        else:
            found = extractor.extract(read_batch(aligned, own))
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            names = ", ".join(files[rows[index]] for index in bad[:5])
            raise StepError(f"{weights.name} gives no finite features for {names}")
        store.add([hashes[row] for row in rows], [files[row] for row in rows], found)
    sources = kept["source_sha256"] if "source_sha256" in kept.columns else ()
    behind = versions_behind(aligned / "manifest.parquet")
    width = store.write(hashes, files, list(sources), behind)
    get_logger("features").info(
        "%s: %d images, %d features each, %d images extracted and the others known",
        weights.name,
        len(files),
        width,
        len(fresh),
    )
    return len(fresh)


def with_prompts(kept: Any, aligned: Path, samples: Path | None) -> Any:
    """Rows of an aligned set's manifest with path, hash and prompt of each one's whole image.

    Raises:
        StepError: no samples are named, or they are not those of the aligned faces.
    """
    if samples is None:
        raise StepError(f"{aligned}: whether images show their prompts is read from --samples")
    made = read_manifest(samples, ("file", "sha256", "prompt")).set_index("file")
    names = list(kept["source_file"])
    if strangers := sorted(set(names) - set(made.index)):
        raise StepError(f"{aligned} has a face of {strangers[0]}, {samples} has not: align again")
    own = made.loc[names]
    whole = [samples.parent / name for name in names]
    return kept.assign(
        whole=whole, whole_sha256=own["sha256"].tolist(), prompt=own["prompt"].tolist()
    )


def read_whole(rows: Any) -> NDArray[np.uint8]:
    """Whole images uint8 [n, h, w, 3] of rows of :func:`with_prompts`.

    Raises:
        StepError: one is missing, or not what its manifest says.
    """
    import numpy as np

    from pipeline_steps.io.images import noted_bytes, read_image

    pairs = zip(rows["whole"], rows["whole_sha256"], strict=True)
    return np.stack([read_image(noted_bytes(path, digest, "sample")) for path, digest in pairs])


def image_hash(path: Path, landmarks: Any, sha256: str | None = None) -> str:
    """SHA-256 of an image file and of the landmarks that belong to it.

    Raises:
        StepError: the file cannot be read, or is not what its manifest's ``sha256`` says.
    """
    import numpy as np

    from pipeline_steps.io.images import noted_bytes

    digest = hashlib.sha256(noted_bytes(path, sha256, "align"))
    digest.update(np.asarray(landmarks, dtype="<f8").tobytes())
    return digest.hexdigest()


def check_colours(aligned: Path, kept: Any) -> None:
    """Judge the colour order on faces spread over the whole set, that is, over many people.

    Raises:
        StepError: the set looks like BGR, or an image is unfit.
    """
    from pipeline_steps.faces.pixels import check_rgb

    step = max(1, len(kept) // COLOUR_SAMPLE)
    try:
        check_rgb(read_batch(aligned, kept.iloc[::step]).images)
    except ValueError as error:
        raise StepError(f"{aligned}: {error}") from error


def read_batch(aligned: Path, rows: Any) -> AlignedFaces:
    """Aligned images of some manifest rows, and their landmarks mapped into them.

    Their colour order counts as checked: that is done for the set as a whole.

    Raises:
        StepError: an image is missing, broken or of another size.
    """
    import numpy as np

    from pipeline_steps.faces.alignment import template_transform, transform_points
    from pipeline_steps.faces.extractors import AlignedFaces
    from pipeline_steps.io.images import BadImage, read_image

    images, landmarks = [], []
    for file, flat in zip(rows["file"], rows["landmarks"], strict=True):
        try:
            image = read_image(aligned / file)
        except (BadImage, OSError) as error:
            raise StepError(
                f"aligned image {aligned / file} cannot be read ({error}): align again"
            ) from error
        if image.shape != (ALIGNED_SIDE, ALIGNED_SIDE, 3):
            raise StepError(
                f"aligned image {aligned / file} has {image.shape[1]}x{image.shape[0]} pixels, "
                f"expected {ALIGNED_SIDE}x{ALIGNED_SIDE}: align again"
            )
        images.append(image)
        if flat is None:
            landmarks.append(np.full((5, 2), np.nan))
            continue
        points = np.asarray(flat, dtype=np.float64).reshape(5, 2)
        landmarks.append(transform_points(template_transform(points, ALIGNED_SIDE), points))
    return AlignedFaces(np.stack(images), np.stack(landmarks), colours_checked=True)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
