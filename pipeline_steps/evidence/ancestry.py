"""Where results come from, as a tree: from a table or figure down to photographs, by hashes.

The ledger says what an artefact is made from; records, manifests and headers say from which files.
Every link is checked: what is noted of a file against the file that is there now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.shards import hash_of
from pipeline_steps.io.tensors import header_of, load_features
from pipeline_steps.naming import REAL, VARIANT, WILD, natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import Entry, at, entry_of, sets_of
from pipeline_steps.study.record import read_record
from pipeline_steps.study.source import NOT_APPLICABLE, Source
from pipeline_steps.study.versions import of_step

LORA = "pytorch_lora_weights.safetensors"
TOLD = {
    "record": ("step", "seed", "config_sha256", "code_sha256"),
    "recogniser": ("seed", "repetition", "n_images", "validation", "validation_sha256"),
    "features": ("extractor", "architecture", "weights_sha256", "preprocessing"),
    "sample": ("seed", "prompt", "steps", "guidance", "scheduler", "weights_sha256"),
    "adapter": ("method", "seed", "key"),
}
"""What is shown of what is known."""

IMAGES = ("image", "sample", "aligned_image", "aligned_in_the_wild")
MANIFESTS = ("manifest", "samples", "aligned")


@dataclass
class Node:
    """One artefact, what is known of it, links that do not hold, and what it was made from."""

    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)

    def all_doubts(self) -> list[str]:
        """The doubts of the whole tree, each once."""
        found = [*self.doubts, *(doubt for part in self.parts for doubt in part.all_doubts())]
        return list(dict.fromkeys(found))

    def as_json(self) -> dict[str, Any]:
        """The tree as plain data."""
        parts = [part.as_json() for part in self.parts]
        return {"what": self.what, **self.facts, "doubts": self.doubts, "from": parts}


class Ancestry:
    """The results of one study, with the folder from which their records name files."""

    def __init__(self, results: Path, root: Path) -> None:
        self.results = results
        self.root = root
        self._frame = cache(read_manifest)
        self._adapter = cache(self._read_adapter)

    def of(self, path: Path, row: int | None = None) -> Node:
        """The tree of a file.

        Args:
            path: a table, score, figure, feature file, sample, aligned face or fine-tuned weights.
            row: of a table, counted from 0; None: all its rows.

        Raises:
            StepError: the file is missing, nothing is known of its kind, or there is no such row.
        """
        if not path.exists():
            raise StepError(f"{path} does not exist: name a file of a study's results")
        path = path / LORA if path.is_dir() and (path / LORA).is_file() else path
        entry = entry_of(path.resolve().relative_to(self.results.resolve()).as_posix())
        if entry is not None:
            if entry.name == "adapter":
                return self._adapter(path.parent)
            if entry.name in IMAGES:
                return self._image(path)
            if entry.name in MANIFESTS:
                people = self._people(entry, path)
                return Node(str(path), {"sha256": sha256_file(path)}, parts=people)
            if entry.name == "identities":  # whose photographs the manifest tells of
                return Node(str(path), {"sha256": sha256_file(path)})
            if entry.name == "features":
                return self._features(path, entry)
            if entry.name == "recogniser":
                return self._recogniser(path, entry)
            if entry.artefact.made_from and entry.name != "config":
                return self._recorded(path, row)
        raise StepError(
            f"nothing is known about files such as {path}; explain a table, score, figure, "
            "feature file, image or fine-tuned weights"
        )

    def _at(self, artefact: str, **fields: str) -> Path:
        return Path(at(self.results, artefact, **fields))

    def _recorded(self, path: Path, row: int | None) -> Node:
        """A file with a record beside it; of its inputs those of one row, if one is asked for."""
        node, wanted = Node(str(path)), None
        if row is not None:
            cells = _cells_of(path, row)
            node.facts["row"] = {key: str(value) for key, value in cells.items()}
            wanted = _rows_inputs(path.stem, cells)
        node.facts["sha256"] = sha256_file(path)
        try:
            record = read_record(path)
        except StepError as error:
            node.doubts.append(str(error))
            return node
        if record is None:
            node.doubts.append(f"{path} has no record: it was not made by this project's steps")
            return node
        node.facts |= {key: record[key] for key in TOLD["record"]}
        node.facts["versions"] = of_step(record["step"], record["versions"])
        for name, facts in record["inputs"].items():
            input_ = self.root / name
            inside = self.results.resolve() in input_.resolve().parents
            below = input_.resolve().relative_to(self.results.resolve()) if inside else None
            entry = entry_of(below.as_posix()) if below else None
            if wanted is not None and not (entry is not None and wanted(entry)):
                continue
            node.parts.append(self._input(input_, name, facts["sha256"], inside))
        return node

    def _input(self, path: Path, name: str, noted: str, inside: bool) -> Node:
        if not path.is_file():
            return Node(name, {"sha256": noted}, [f"{name} is not there any more"])
        digest = sha256_file(path)
        node = self.of(path) if inside else Node(name, {"sha256": digest})
        if digest != noted:
            node.doubts.append(f"{name} was changed since it was used")
        return node

    def _recogniser(self, path: Path, entry: Entry) -> Node:
        header = header_of(path)
        facts = {key: header[key] for key in TOLD["recogniser"] if key in header}
        manifests = [self._at("aligned", source=of) for of in sets_of(entry.fields["trained_on"])]
        parts = [self.of(manifest) for manifest in manifests if manifest.is_file()]
        return Node(str(path), {"sha256": sha256_file(path)} | facts, parts=parts)

    def _features(self, path: Path, entry: Entry) -> Node:
        header = load_features(path)
        facts = {key: header.metadata[key] for key in TOLD["features"] if key in header.metadata}
        source = entry.fields["source"]
        people = self._people(
            Entry("aligned", {"source": source}), self._at("aligned", source=source), header.files
        )
        counted = {"sha256": sha256_file(path), "images": len(header.files)}
        return Node(str(path), counted | facts, parts=people)

    def _image(self, path: Path) -> Node:
        """One image, by the manifest above it."""
        for folder in path.parents:
            manifest = folder / "manifest.parquet"
            if manifest.is_file():
                break
        else:
            raise StepError(f"there is no manifest above {path}")
        below = manifest.resolve().relative_to(self.results.resolve()).as_posix()
        entry = entry_of(below)
        file = path.relative_to(folder).as_posix()
        found = self._people(entry, manifest, [file]) if entry is not None else []
        return found[0] if found else Node(str(path), {}, [f"{manifest} does not list {path}"])

    def _people(
        self, entry: Entry, manifest: Path, files: list[str] | tuple[str, ...] | None = None
    ) -> list[Node]:
        """The images of a manifest, identity by identity, each identity's weights once."""
        if not manifest.is_file():
            return [Node(str(manifest), {}, [f"{manifest} is not there any more"])]
        frame = self._frame(manifest)
        frame = frame[frame["file"].notna()]
        if files is not None:
            frame = frame[frame["file"].isin(set(files))]
        nodes = []
        for identity in sorted(frame["identity"].unique(), key=natural_key):
            rows = frame[frame["identity"] == identity].to_dict("records")
            node = Node(f"{identity}: {len(rows)} images of {manifest.parent}")
            weights: dict[str, Node] = {}
            node.parts = [self._row(entry, manifest.parent, row, weights) for row in rows]
            node.parts += list(weights.values())
            nodes.append(node)
        return nodes

    def _row(
        self, entry: Entry, folder: Path, row: Mapping[Any, Any], weights: dict[str, Node]
    ) -> Node:
        """One image of a manifest, and what it was made from."""
        path = folder / row["file"]
        node = Node(str(path), {"sha256": row["sha256"]})
        if hash_of(path) != row["sha256"]:
            node.doubts.append(f"{path} is not the image that its manifest lists")
        if entry.name == "aligned":
            node.parts = self._aligned_from(entry.fields["source"], row, weights)
        elif entry.name == "samples":
            node.facts |= {key: row[key] for key in TOLD["sample"]}
            of = {key: row[key] for key in ("base_model", "method", "identity")}
            lora = self._at("adapter", **of, file=LORA)
            if lora.is_file():
                found = weights.setdefault(str(lora), self._adapter(lora.parent))
                if found.facts.get("sha256") != row["weights_sha256"]:
                    node.doubts.append(f"{path} was sampled with other weights than {lora}")
        elif row.get("source"):
            node.facts["photograph"] = row["source"]
        return node

    def _aligned_from(
        self, source: str, row: Mapping[Any, Any], weights: dict[str, Node]
    ) -> list[Node]:
        file, digest = row["source_file"], row["source_sha256"]
        if source == WILD or Source.named(source).is_external:
            return [Node(file, {"sha256": digest})]
        entry = Entry("manifest", {}) if source == REAL else Entry("samples", {"variant": source})
        manifest = self._at(entry.name, **entry.fields)
        frame = self._frame(manifest)
        match = frame[frame["file"] == file].to_dict("records")
        if not match:
            return [Node(file, {"sha256": digest}, [f"{manifest} does not list {file}"])]
        node = self._row(entry, manifest.parent, match[0], weights)
        if match[0]["sha256"] != digest:
            node.doubts.append(f"{row['file']} of {source} was aligned from another image")
        return [node]

    def _read_adapter(self, folder: Path) -> Node:
        path, place = folder / LORA, folder / "training.json"
        node = Node(str(path), {"sha256": sha256_file(path)})
        if not place.is_file():
            node.doubts.append(f"{place} is missing: nothing is known of these weights' training")
            return node
        record = json.loads(place.read_text(encoding="utf-8"))
        if record["weights_sha256"] != node.facts["sha256"]:
            node.doubts.append(f"{path} is not the file that {place} is about")
        node.facts |= {key: record[key] for key in TOLD["adapter"]}
        node.facts["versions"] = of_step("finetune", record["versions"])
        node.facts["base_model"] = record["base_model"]["name"]
        home = self._at("manifest")
        by_file = {row["file"]: row for row in self._frame(home).to_dict("records")}
        for file, digest in record["images"].items():
            part = Node(str(home.parent / file), {"sha256": digest})
            row = by_file.get(file)
            if row is None or row["sha256"] != digest:
                part.doubts.append(f"{path} was trained on another {home.parent / file}")
            else:
                part.facts["photograph"] = row["source"]
            node.parts.append(part)
        return node


def _cells_of(table: Path, row: int) -> dict[str, Any]:
    """One row of a table, counted from 0."""
    if table.suffix != ".csv":
        raise StepError(f"{table} has no rows to choose from: name the .csv beside it")
    frame = pd.read_csv(table, keep_default_na=False)
    if not 0 <= row < len(frame):
        raise StepError(f"{table} has the rows 0 to {len(frame) - 1}, not {row}")
    return {str(key): value for key, value in frame.iloc[row].items()}


def _rows_inputs(table: str, cells: Mapping[str, Any]) -> Callable[[Entry], bool]:
    """Which of a table's inputs one of its rows is from."""
    reference = cells.get("method", NOT_APPLICABLE) == NOT_APPLICABLE
    variant = Source(*(str(cells.get(key)) for key in VARIANT)).name

    def wanted(entry: Entry) -> bool:
        fields = entry.fields
        if table == "recognition":
            of = {"trained_on": str(cells["trained_on"]), "repetition": str(cells["seed"])}
            return entry.name == "verification" and fields == of
        if table == "audit":
            return entry.name == "audit_summary" and fields["variant"] == variant
        if table == "groups":
            return entry.name == "groups" and fields["source"] in (variant, cells["base_model"])
        if table == "comparison":
            if entry.name != "replicates":
                return False
            columns = Source.named(fields["variant"]).columns
            return all(columns[key] == cells[key] for key in ("base_model", "prompts"))
        if entry.name == "reference_scores":
            return reference and fields["kind"] == table
        return entry.name == "scores" and fields == {"kind": table, "variant": variant}

    return wanted
