"""Embed the prepared images: the positives of the identity losses.

In:  dataset/manifest.parquet and the images it names; the recogniser that guides training.
Out: dataset/embeddings/<identity>.safetensors   `embeddings` float32 [n, 512], rows of length 1;
                                                 `files` in the metadata, as in the manifest;
     dataset/embeddings/<identity>@<side>.safetensors   the same of the images shrunk to the side of
                                                 a base model that is smaller than they are;
     dataset/embeddings/index.json               identities with their files, hashes and images
                                                 without an embedding; images that are less like
                                                 the person's others than like another person; and
                                                 how they were made;
     dataset/embeddings/items.json               what is finished: who is the same is not embedded
                                                 again.
     The face region is the one that fine-tuning compares: the detector's box, of several the one
     that prepare kept, cut out and stretched, not aligned. A prepared image in which no face is
     found has no embedding; who has none gets an empty file, and cannot be fine-tuned by methods
     that need embeddings.

Source: Tomasevic et al., "ID-Booth", FG 2025, Eq. 7 and 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import EmbedSettings
from pipeline_steps.study.store import Store
from pipeline_steps.study.versions import made_with, versions_behind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.faces.recogniser import Recogniser


def run(frozen: Frozen[EmbedSettings], *, dataset: Path, device: str) -> dict[str, Any]:
    """Embed all kept images of a dataset.

    Args:
        frozen: the step's configuration; its weights have the role "recogniser".
        dataset: the dataset folder; embeddings are written below it.
        device: "cpu" or "cuda".

    Returns:
        The content of index.json.

    Raises:
        StepError: no recogniser is named or its file is unfit, or an image is missing or broken.
    """
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.faces.recogniser import embedded_by, load_recogniser
    from pipeline_steps.io.atomic import write_json
    from pipeline_steps.io.hashes import sha256_bytes
    from pipeline_steps.io.images import noted_bytes
    from pipeline_steps.io.tensors import save_features
    from pipeline_steps.naming import natural_key

    log = get_logger("embed")
    weights = frozen.weights.get("recogniser")
    if weights is None:
        raise StepError("the configuration names no weights with the role recogniser")
    manifest = read_manifest(dataset / "manifest.parquet", ("identity", "file", "kept"))
    kept = manifest[manifest["kept"]]
    if kept.empty:
        raise StepError(f"{dataset / 'manifest.parquet'} has no kept image: run prepare again")
    settings = frozen.settings.model_dump(mode="json", exclude={"resolutions"})
    detector = Detector(device, **frozen.settings.detector.model_dump())
    recogniser = load_recogniser(weights, device)
    made = {"recogniser": weights.name, **embedded_by(weights)}
    entries: dict[str, Any] = {}
    store = Store(dataset / "embeddings", made_with(frozen))
    groups = sorted(kept.groupby("identity"), key=lambda group: natural_key(str(group[0])))
    for name, group in progress(groups, description="identities", unit="identity"):
        identity = str(name)
        noted = group["sha256"] if "sha256" in group.columns else [None] * len(group)
        contents = {
            str(file): noted_bytes(dataset / file, digest, "prepare")
            for file, digest in zip(group["file"], noted, strict=True)
        }
        hashes = {file: sha256_bytes(content) for file, content in contents.items()}
        boxes = group["box"] if "box" in group.columns else [None] * len(group)
        chosen = [None if box is None else [*map(float, box)] for box in boxes]  # whom they show
        for side in (None, *frozen.settings.resolutions):  # None: as they were prepared
            item_name, size = identity, {}
            if side is not None:
                item_name, size = f"{identity}@{side}", {"resolution": str(side)}
            made_under = key(
                frozen,
                settings=settings,
                images=hashes,
                boxes=chosen,
                recogniser=weights.name,
                **size,
            )
            item = store.find(item_name, made_under)
            if item is None:
                images = [read_prepared(dataset / file, text) for file, text in contents.items()]
                path = store.folder / f"{item_name}.safetensors"
                found, rows = embed_images(*shrunk(images, [*boxes], side), detector, recogniser)
                files = [file for index, file in enumerate(contents) if index in found]
                save_features(path, rows, files, key="embeddings", **made, **size)
                without = [file for file in contents if file not in files]
                item = store.item(made_under, [path.name], n=len(files), without_face=without)
                store.add({item_name: item})
            at_side = "" if side is None else f" at {side} px"
            for file in item.facts["without_face"]:
                log.warning(
                    "%s: no face found in the prepared image%s, no embedding", file, at_side
                )
            if not item.facts["n"]:
                log.warning("no face is found in any prepared image of %s%s", identity, at_side)
            ((file, digest),) = item.files.items()
            entries[item_name] = {"file": file, "sha256": digest, **item.facts}
    store.retain(entries)
    for path in store.folder.glob("*.safetensors"):
        if path.stem not in entries:
            path.unlink()  # of an identity that has left the dataset, or of another size
    outliers = outliers_of(store, [str(name) for name, _ in groups])
    for file, similarity in outliers.items():
        log.warning(
            "%s is less like the person's other photographs (%.2f) than like another person's: "
            "look whether it shows somebody else",
            *(file, similarity),
        )
    versions = store.versions(entries) | {*versions_behind(dataset / "manifest.parquet")}
    told = {"outliers": outliers, "versions": sorted(versions)}
    resolutions = [*frozen.settings.resolutions]
    index = {"identities": entries, "resolutions": resolutions, **told, **made}
    write_json(store.folder / "index.json", index)
    log.info("%d identities embedded with %s", len(entries), weights.name)
    return index


def embed_images(
    images: Sequence[NDArray[np.uint8]],
    boxes: Sequence[Any],
    detector: Detector,
    recogniser: Recogniser,
) -> tuple[list[int], NDArray[np.float32]]:
    """Embed a face of each image as the identity losses do.

    Args:
        images: uint8 [h, w, 3] RGB, all of one size.
        boxes: [4] of each image's person; None: of the largest face.

    Returns:
        Indices of the m images with a face, and float32 [m, d] embeddings of length 1.
    """
    faces = dict(enumerate(detector.detect(images)))
    found = {index: face.nearest(boxes[index]) for index, face in faces.items() if face}
    rows = recogniser.embed_regions(
        [images[index] for index in found], [face.box for face in found.values()]
    )
    return [*found], rows


def shrunk(
    images: Sequence[NDArray[np.uint8]], boxes: Sequence[Any], side: int | None
) -> tuple[Sequence[NDArray[np.uint8]], Sequence[Any]]:
    """Images and boxes at another side, as fine-tuning shrinks them; None: as they are."""
    from pipeline_steps.io.images import resized

    if side is None:
        return images, boxes
    smaller = [
        None if box is None else np.asarray(box, float) * side / image.shape[0]
        for image, box in zip(images, boxes, strict=True)
    ]
    return [resized(image, side) for image in images], smaller


def outliers_of(store: Store, identities: Iterable[str]) -> dict[str, float]:
    """Images that are less like the person's others than like another person, and their mean
    cosine similarity to the person's others.
    """
    from pipeline_steps.io.tensors import load_features
    from pipeline_steps.metrics.arrays import similarity_to_own

    path = {name: store.folder / f"{name}.safetensors" for name in identities}
    found = {name: load_features(file, key="embeddings") for name, file in path.items()}
    files = [file for features in found.values() for file in features.files]
    owners = [name for name, features in found.items() for _ in features.files]
    if not files:
        return {}
    own, others = similarity_to_own(
        np.concatenate([features.features for features in found.values()]), owners
    )
    return {files[index]: round(float(own[index]), 3) for index in np.flatnonzero(own < others)}


def read_prepared(path: Path, content: bytes) -> NDArray[np.uint8]:
    """A prepared image.

    Raises:
        StepError: it is broken; prepare wrote it whole, so it was changed since.
    """
    from pipeline_steps.io.images import BadImage, read_image

    try:
        return read_image(content)
    except BadImage as error:
        raise StepError(f"prepared image {path} cannot be read ({error}): prepare again") from error


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
