"""Finished items, kept until their key changes.

Whatever takes long is made item by item: an adapter, a sampled image, an aligned face, a
recogniser. An item is finished when its entry stands in the folder's index: under its name, with
the key that it was made under and the hashes of its files. The entry is written after the files
(atomic writes, in that order), so a process that is killed at any moment leaves nothing that looks
finished and is not.

Workflow managers delete the outputs that they remake. The index, and files that no rule declares,
stay; so a step that runs again makes only what is missing or has another key. Rows of features are
kept in the same way in one file instead of many: :class:`Rows`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.shards import hash_of
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.runtime.errors import StepError

INDEX = "items.json"
FLUSH = 8192  # rows after which new ones are kept, so that a crash costs minutes; of many, 1/8


@dataclass(frozen=True)
class Item:
    """A finished item.

    Attributes:
        key: What it was made under, see ``study.key``.
        files: Path below the store's folder to SHA-256.
        facts: What else is known of it, JSON values.
        versions: Notes on the libraries that it was made with, see ``study.versions``.
    """

    key: str
    files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)


class Store:
    """The finished items of one folder.

    Args:
        folder: Where the files lie, and the index; a broken one counts as empty.
        versions: Notes on the libraries that new items are made with.
    """

    def __init__(self, folder: Path, versions: Sequence[str] = ()) -> None:
        self.folder = folder
        self.index = folder / INDEX
        self._versions = list(versions)
        self._items: dict[str, Item] = {}
        try:
            plain = json.loads(self.index.read_text(encoding="utf-8"))
            self._items = {name: Item(**entry) for name, entry in plain.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def find(self, name: str, key: str, *, whole: bool = True) -> Item | None:
        """The item of a name, if it was made under this key.

        Args:
            name: The item's name.
            key: What it would be made under now.
            whole: Whether its files have to be there as they were made.
        """
        item = self._items.get(name)
        if item is None or item.key != key or (whole and not self.is_whole(item)):
            return None
        return item

    def is_whole(self, item: Item) -> bool:
        """Whether all files of an item are there as they were made."""
        return all(hash_of(self.folder / file) == digest for file, digest in item.files.items())

    def add(self, items: Mapping[str, Item]) -> None:
        """Note items whose files have been written."""
        for name, item in items.items():
            self._items[name] = replace(item, versions=item.versions or self._versions)
        self._write()

    def item(self, key: str, files: Iterable[str] = (), **facts: Any) -> Item:
        """An item of files that lie in the folder, with their hashes."""
        return Item(key, {file: sha256_file(self.folder / file) for file in files}, facts)

    def versions(self, names: Iterable[str]) -> set[str]:
        """Notes on the libraries that some items were made with."""
        return {note for name in names for note in self._items[name].versions}

    def retain(self, names: Iterable[str]) -> None:
        """Forget all other items; their files stay."""
        wanted = set(names)
        if not self._items.keys() <= wanted:
            self._items = {name: self._items[name] for name in self._items if name in wanted}
            self._write()

    def _write(self) -> None:
        write_json(self.index, {name: vars(item) for name, item in self._items.items()})


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def twin(out: Path) -> Path:
    """The hidden file beside a feature file, in which its rows are kept."""
    return out.with_name(f".{out.name}")


class Rows:
    """Rows of one set of images by one extractor, found again by the content of the image.

    Args:
        out: The feature file that is to be written.
        key: What the rows depend on beside the image; rows that were made under another one are
            not used.
        versions: Notes on the libraries that new rows are made with.
        about: Further metadata of the file.
    """

    def __init__(self, out: Path, key: str, versions: Sequence[str] = (), **about: str) -> None:
        self.out = out
        self.about = {"made_under": key, **about}
        self.rows: dict[str, NDArray[np.float32]] = {}
        self.names: dict[str, str] = {}
        self.versions: dict[str, list[str]] = {}
        self.unsaved, self._fresh = 0, list(versions)
        try:
            earlier = load_features(twin(out))
            if earlier.metadata.get("made_under") == key:
                images = json.loads(earlier.metadata["images"])
                self.rows = dict(zip(images, earlier.features, strict=True))
                self.names = dict(zip(images, earlier.files, strict=True))
                noted = json.loads(earlier.metadata.get("rows_versions", "[]"))
                self.versions = dict.fromkeys(images, noted)
        except (StepError, OSError, KeyError, ValueError):
            pass  # a broken twin is no more than a lost one

    def missing(self, images: Sequence[str]) -> list[int]:
        """Indices of the images that have to be extracted; of equal images only the first."""
        first = {image: index for index, image in reversed(list(enumerate(images)))}
        return sorted(index for image, index in first.items() if image not in self.rows)

    def add(self, images: Sequence[str], files: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Take in new rows [n, d], and keep them on disk from time to time."""
        self.rows.update(zip(images, rows, strict=True))
        self.names.update(zip(images, files, strict=True))
        self.versions.update(dict.fromkeys(images, self._fresh))
        self.unsaved += len(images)
        if self.unsaved >= max(FLUSH, len(self.rows) // 8):
            self._save(twin(self.out), list(self.rows), list(self.names.values()))
            self.unsaved = 0

    def write(
        self,
        images: Sequence[str],
        files: Sequence[str],
        sources: Sequence[str] = (),
        behind: Iterable[str] = (),
    ) -> int:
        """Write the feature file and its twin, with these images only.

        Args:
            images: Hash of each image and of what else its row depends on.
            files: Name of each image.
            sources: Hash of each image that these were aligned from, where it is known.
            behind: Notes on the libraries that the images were made with.

        Returns:
            Number of features of each image; 0 without an image.
        """
        width = self._save(self.out, images, files, sources, behind)
        link(self.out, twin(self.out))
        return width

    def _save(
        self,
        path: Path,
        images: Sequence[str],
        files: Sequence[str],
        sources: Sequence[str] = (),
        behind: Iterable[str] = (),
    ) -> int:
        found = [self.rows[image] for image in images]
        rows = np.stack(found) if found else np.empty((0, 0), np.float32)
        own = {note for image in images for note in self.versions.get(image, ())}
        lists = {
            "images": images,
            "sources": sources,
            "rows_versions": sorted(own),
            "versions": sorted(own | {*behind}),
        }
        texts = {name: json.dumps(list(of)) for name, of in lists.items()}
        save_features(path, rows, files, **texts, **self.about)
        return rows.shape[1]
