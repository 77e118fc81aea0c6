"""Features that were extracted before, found again by the content of the image.

A feature file has a hidden twin beside it, which a workflow manager knows nothing of and so leaves
alone when it deletes and remakes the file. A row is used again when the image and its landmarks
are the same, and the extractor's weights, options and preprocessing are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.io.images import noted_bytes
from pipeline_steps.io.tensors import Features, load_features, save_features
from pipeline_steps.runtime.errors import StepError

FLUSH = 8192  # images after which new rows are kept, so that a crash costs minutes

Rows = NDArray[np.float32]


def image_hash(path: Path, landmarks: ArrayLike, sha256: str | None = None) -> str:
    """SHA-256 of an image file and of the landmarks that belong to it.

    Raises:
        StepError: the file cannot be read, or is not what its manifest's ``sha256`` says.
    """
    digest = hashlib.sha256(noted_bytes(path, sha256, "align"))
    digest.update(np.asarray(landmarks, dtype="<f8").tobytes())
    return digest.hexdigest()


def twin(out: Path) -> Path:
    """The hidden file beside a feature file."""
    return out.with_name(f".{out.name}")


class FeatureStore:
    """Rows of one set of images by one extractor.

    Args:
        out: the feature file that is to be written.
        about: what the rows depend on beside the image; goes into the file's metadata. Rows of a
            file that says otherwise are not used.
    """

    def __init__(self, out: Path, **about: str) -> None:
        self.out = out
        self.about = about
        self.rows: dict[str, Rows] = {}
        self.names: dict[str, str] = {}
        self.unsaved = 0
        earlier = self._earlier()
        if earlier is not None:
            images = json.loads(earlier.metadata["images"])
            self.rows = dict(zip(images, earlier.features, strict=True))
            self.names = dict(zip(images, earlier.files, strict=True))

    def missing(self, images: Sequence[str]) -> list[int]:
        """Indices of the images that have to be extracted; of equal images only the first."""
        first = {image: index for index, image in reversed(list(enumerate(images)))}
        return sorted(index for image, index in first.items() if image not in self.rows)

    def add(self, images: Sequence[str], files: Sequence[str], rows: Rows) -> None:
        """Take in new rows [n, d], and keep them on disk from time to time."""
        self.rows.update(zip(images, rows, strict=True))
        self.names.update(zip(images, files, strict=True))
        self.unsaved += len(images)
        if self.unsaved >= FLUSH:
            self._save(twin(self.out), list(self.rows), list(self.names.values()))
            self.unsaved = 0

    def write(
        self, images: Sequence[str], files: Sequence[str], sources: Sequence[str] = ()
    ) -> int:
        """Write the feature file and its twin, with these images only.

        Args:
            images: hash of each image and its landmarks.
            files: name of each image.
            sources: hash of each image that these were aligned from, where it is known.

        Returns:
            Number of features of each image.
        """
        self._save(self.out, images, files, sources)
        place = twin(self.out)
        place.unlink(missing_ok=True)
        try:
            os.link(self.out, place)  # the same bytes under two names take no space
        except OSError:  # a file system without hard links
            self._save(place, images, files, sources)
        return len(self.rows[images[0]])

    def _save(
        self, path: Path, images: Sequence[str], files: Sequence[str], sources: Sequence[str] = ()
    ) -> None:
        rows = np.stack([self.rows[image] for image in images])
        lists = {"images": json.dumps(list(images)), "sources": json.dumps(list(sources))}
        save_features(path, rows, files, **lists, **self.about)

    def _earlier(self) -> Features | None:
        place = twin(self.out)
        if not place.is_file():
            return None
        try:
            earlier = load_features(place)
        except StepError:  # a broken twin is no more than a lost one
            return None
        same = all(earlier.metadata.get(name) == value for name, value in self.about.items())
        return earlier if same and "images" in earlier.metadata else None
