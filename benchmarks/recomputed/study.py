"""A finished study, read once: settings, images, features checked against the images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pipeline_steps.study.artefacts import at, fields_of
from recomputed.images import Images, features_of, prompts_read, read_set

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
REFERENCES = ("real", "wild")
FEATURES = 1e-4  # largest difference of a feature, relative to the set's largest one
NAMES = ("base_model", "method", "prompts")


@dataclass
class Study:
    """A finished study, read once.

    Attributes:
        root: results/<study>.
        own: numbers from features of the images instead of the stored ones.
        intervals: recompute intervals as well.
        images: most images of a set whose features are recomputed; None: all.
        largest: most entries of a matrix.
        problems: what does not agree.
        left_out: what was not recomputed.
    """

    root: Path
    own: bool = False
    intervals: bool = False
    images: int | None = None
    largest: int = 6_000_000  # beyond, error rates are over groups of people
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def place(self, artefact: str, **fields: str) -> Path:
        """Where the ledger says that an artefact of this study lies."""
        return Path(at(self.root, artefact, **fields))

    def table(self, name: str) -> Path:
        """The CSV file of a table."""
        return self.place("table", table=name, ending="csv")

    def config(self, *parts: str) -> Row:
        """A frozen configuration of the study."""
        path = self.place("config", file="/".join(parts) + ".json")
        loaded: Row = json.loads(path.read_text("utf-8"))
        return loaded

    @cached_property
    def sets(self) -> dict[str, Images]:
        """Every set of aligned images by its name."""
        found = {}
        everywhere = self.place("aligned", source="**").relative_to(self.root).as_posix()
        for manifest in sorted(self.root.glob(everywhere)):
            name = fields_of(manifest, "aligned")["source"]
            found[name], wrong = read_set(manifest.parent)
            self.problems += [f"aligned/{name}: {what}" for what in wrong]
        return found

    @property
    def variants(self) -> list[str]:
        """The sets that were generated."""
        return [name for name in self.sets if name not in REFERENCES]

    @property
    def references(self) -> list[str]:
        """The sets they are compared with."""
        return [name for name in REFERENCES if name in self.sets]

    def features(self, name: str, extractor: str) -> Array:
        """Features of a set, checked against those of its images; float64 [n, d]."""
        if (name, extractor) not in self._features:
            self._features[name, extractor] = self._checked(name, extractor)
        return self._features[name, extractor]

    @cached_property
    def _features(self) -> dict[tuple[str, str], Array]:
        return {}

    def _checked(self, name: str, extractor: str) -> Array:
        images = self.sets[name]
        path = self.place("features", source=name, extractor=extractor)
        config = self.place("config", file=f"features/{extractor}.json")
        network = json.loads(config.read_text("utf-8"))["weights"]["extractor"]
        if network["task"] == "prompt" and not self.place("samples", variant=name).is_file():
            return np.empty((0, 1))  # of no prompts
        with safe_open(path, framework="np") as file:
            stored, files = file.get_tensor("features"), json.loads(file.metadata()["files"])
        if files != images.files:
            self.problems.append(f"{path}: its files are not the {len(images.files)} aligned ones")
        n = len(images.files)
        some = n if self.images is None else min(n, self.images)
        rows = sorted({int(row) for row in np.linspace(0, n - 1, some)})
        if network["architecture"] == "landmarks" and np.isnan(images.landmarks).any():
            self.left_out.append(f"features {name} {extractor}: its landmarks are not stored")
            return stored.astype(np.float64)
        if network["task"] == "prompt":
            own = prompts_read(images, config, self.place("samples", variant=name), rows)
        else:
            own = features_of(images, config, rows)
        off = float(np.abs(own - stored[rows]).max() / np.abs(stored).max())
        if off > FEATURES:
            self.problems.append(f"{path}: features of the images differ by {off:.2g}")
        print(f"features {name} {extractor}: {len(rows)} of {n} images, off by {off:.1g}")
        whole = self.own and len(rows) == n
        return (own if whole else stored).astype(np.float64)
