"""Aligned images: training sets in memory, and many images in parts."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_steps.io.hashes import sha256_json
from pipeline_steps.io.images import BadImage, noted_bytes, read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError, write_error
from pipeline_steps.runtime.logs import get_logger, progress

IMAGE_SIZE = 112
PART = 1024  # images of a part


class NothingToTrain(StepError):
    """A set of images, complete and sound as it is, that no recogniser can be trained on."""


@dataclass(frozen=True)
class TrainingSet:
    """Images with their classes.

    Attributes:
        images: uint8 [n, 112, 112, 3], RGB; in a file that goes with the array, not in memory.
        labels: int64 [n], index into identities.
        identities: class names.
    """

    images: np.ndarray
    labels: np.ndarray
    identities: tuple[str, ...]

    def sha256(self) -> str:
        """Hash of all of it."""
        arrays = (np.ascontiguousarray(array) for array in (self.images, self.labels))
        parts = [hashlib.sha256(array.data).hexdigest() for array in arrays]
        return sha256_json([*parts, *self.identities])


def load_training_set(
    sources: Sequence[Path], *, merge_sources: bool = True, beside: Path | None = None
) -> TrainingSet:
    """Read the kept images of aligned sources.

    Args:
        sources: folders with a manifest.parquet (columns identity, file, kept) and its images.
        merge_sources: one class per identity name; else one per source and identity name.
        beside: folder on whose disk the decoded images lie; None: that of temporary files.

    Raises:
        NothingToTrain: a source without a kept image, or fewer than two identities altogether.
        StepError: a source without manifest, or an image that is missing, broken or not 112 x 112;
            or a disk that is too small for the decoded images.
    """
    files: list[Path] = []
    hashes: list[str | None] = []
    names: list[str] = []
    for number, source in enumerate(sources):
        manifest = read_manifest(source / "manifest.parquet", ["identity", "file", "kept"])
        kept = manifest[manifest["kept"].astype(bool)]
        if kept.empty:
            raise NothingToTrain(f"{source} has no aligned image; look at reason in its manifest")
        hashes += kept["sha256"].tolist() if "sha256" in kept.columns else [None] * len(kept)
        for identity, file in zip(kept["identity"], kept["file"], strict=True):
            files.append(source / str(file))
            names.append(str(identity) if merge_sources else f"{number}/{identity}")
    identities = tuple(sorted(set(names)))
    if len(identities) < 2:
        raise NothingToTrain(
            f"a recogniser needs images of at least 2 identities; {', '.join(map(str, sources))} "
            f"hold {len(identities)}"
        )
    index = {name: i for i, name in enumerate(identities)}
    images = _mapped((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), beside)
    for i, pair in enumerate(zip(files, hashes, strict=True)):
        images[i] = _read_aligned(*pair)
    return TrainingSet(images, np.array([index[name] for name in names]), identities)


def _mapped(shape: tuple[int, ...], beside: Path | None) -> np.ndarray:
    """An array uint8 in a file without a name, which is gone with the process at the latest."""
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=beside) as file:
            # A full disk is told now; a mapped page without a place would end the process.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        sentence = write_error(error, beside or Path(tempfile.gettempdir()))
        if sentence is None:
            raise
        raise sentence from error


def _read_aligned(file: Path, sha256: str | None) -> np.ndarray:
    try:
        image = read_image(noted_bytes(file, sha256, "align"))
    except BadImage as error:
        raise StepError(f"{file} cannot be read ({error.reason}); align again") from error
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        height, width = image.shape[:2]
        raise StepError(f"{file} is {width} x {height} pixels, not 112 x 112; align it first")
    return image


def read_in_parts(folder: Path, files: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Positions of files and their images, uint8 [n, 112, 112, 3] RGB, part by part.

    Files that cannot be read, or are not 112 x 112, are left out with a line in the log.
    """
    positions: list[int] = []
    pixels: list[np.ndarray] = []
    for i, file in enumerate(progress(files, description="images", total=len(files))):
        try:
            image = read_image(folder / file)
            if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
                raise BadImage(f"{image.shape[1]} x {image.shape[0]} pixels, not 112 x 112")
        except (BadImage, OSError) as error:
            get_logger("images").warning("%s left out: %s", file, error)
            continue
        positions.append(i)
        pixels.append(image)
        if len(pixels) == PART:
            yield positions, np.stack(pixels)
            positions, pixels = [], []
    if pixels:
        yield positions, np.stack(pixels)
