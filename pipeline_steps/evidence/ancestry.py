"""Where results come from, as a tree: from a table or figure down to photographs, by hashes.

Every link is checked: what a record says of a file against the file that is there now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.naming import VARIANT, natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.record import read_record
from pipeline_steps.study.sources import NOT_APPLICABLE

LORA = "pytorch_lora_weights.safetensors"
RECORDED = ("step", "seed", "config_sha256", "code_sha256", "versions")


@dataclass
class Node:
    """One artefact and what it was made from.

    Attributes:
        what: the artefact, for people.
        facts: what is known of it.
        doubts: links that do not hold, one sentence each.
        parts: what it was made from.
    """

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
    """The results of one study.

    Args:
        results: the results folder.
        root: the folder from which records name files.
    """

    def __init__(self, results: Path, root: Path = Path()) -> None:
        self.results = results
        self.root = root
        self._frame = cache(read_manifest)

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
        if path.is_dir() and (path / LORA).is_file():
            path = path / LORA
        relative = path.resolve().relative_to(self.results.resolve())
        for prefix, make in self._makers().items():
            if relative.parts[0] == prefix:
                return make(path, row)
        raise StepError(
            f"nothing is known about files such as {path}; explain a table, score, figure, feature "
            "file, image or fine-tuned weights"
        )

    def _makers(self) -> dict[str, Callable[[Path, int | None], Node]]:
        return {
            "tables": self._table,
            "figures": lambda path, row: self._recorded(path, None),
            "scores": lambda path, row: self._recorded(path, None),
            "audit": lambda path, row: self._recorded(path, None),
            "recognition": lambda path, row: self._recognition(path),
            "features": lambda path, row: self._features(path),
            "aligned": lambda path, row: self._image(path),
            "samples": lambda path, row: self._image(path),
            "loras": lambda path, row: self._weights(path.parent),
            "dataset": lambda path, row: self._image(path),
        }

    def _table(self, path: Path, row: int | None) -> Node:
        wanted = None
        if row is not None and path.suffix != ".csv":
            raise StepError(f"{path} has no rows to choose from: name the .csv beside it")
        if row is not None:
            frame = pd.read_csv(path, keep_default_na=False)
            if not 0 <= row < len(frame):
                raise StepError(f"{path} has the rows 0 to {len(frame) - 1}, not {row}")
            cells = {str(key): value for key, value in frame.iloc[row].items()}
            wanted = self._source_of_row(path.stem, cells)
        node = self._recorded(path, wanted)
        if row is not None:
            node.facts = {"row": {key: str(value) for key, value in cells.items()}} | node.facts
        return node

    def _source_of_row(self, table: str, cells: Mapping[str, Any]) -> Callable[[str], bool]:
        """Which of a table's inputs one of its rows is from."""
        reference = cells.get("method", NOT_APPLICABLE) == NOT_APPLICABLE
        variant = "/".join(str(cells.get(key)) for key in VARIANT)
        if table == "recognition":
            ending = f"recognition/{cells['trained_on']}/seed{cells['seed']}/verification.csv"
        elif table == "audit":
            ending = f"audit/{variant}.summary.csv"
        elif table == "comparison":
            parent = f"scores/identity/{cells['base_model']}/"
            return lambda name: parent in name and name.endswith(f"/{cells['prompts']}.parquet")
        else:
            ending = f"scores/{table}/{'reference' if reference else variant}.csv"
        return lambda name: name.endswith(ending)

    def _recorded(self, path: Path, wanted: Callable[[str], bool] | None) -> Node:
        """A file with a record beside it; of its inputs only the wanted ones."""
        node = Node(str(path), {"sha256": sha256_file(path)})
        try:
            record = read_record(path)
        except StepError as error:
            node.doubts.append(str(error))
            return node
        if record is None:
            node.doubts.append(f"{path} has no record: it was not made by this project's steps")
            return node
        node.facts |= {key: record[key] for key in RECORDED}
        for name, facts in record["inputs"].items():
            if wanted is None or wanted(name):
                node.parts.append(self._input(name, facts["sha256"]))
        return node

    def _input(self, name: str, noted: str) -> Node:
        path = self.root / name
        if not path.is_file():
            return Node(name, {"sha256": noted}, [f"{name} is not there any more"])
        inside = self.results.resolve() in path.resolve().parents
        node = self.of(path) if inside else Node(name, {"sha256": sha256_file(path)})
        if sha256_file(path) != noted:
            node.doubts.append(f"{name} was changed since it was used")
        return node

    def _recognition(self, path: Path) -> Node:
        if path.name != "model.safetensors":
            return self._recorded(path, None)
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            header = dict(file.metadata() or {})
        kept = ("seed", "repetition", "n_images", "validation", "validation_sha256")
        facts = {key: header[key] for key in kept if key in header}
        node = Node(str(path), {"sha256": sha256_file(path)} | facts)
        for part in path.parent.parent.name.split("+"):
            source = part if part == "real" else "/".join(part.rsplit("-", 2))
            manifest = self.results / "aligned" / source / "manifest.parquet"
            if manifest.is_file():
                node.parts.append(self._image(manifest))
        return node

    def _features(self, path: Path) -> Node:
        header = load_features(path)
        told = ("extractor", "architecture", "weights_sha256", "preprocessing")
        facts = {key: header.metadata[key] for key in told if key in header.metadata}
        node = Node(str(path), {"sha256": sha256_file(path), "images": len(header.files)} | facts)
        below = path.resolve().parent.relative_to((self.results / "features").resolve())
        manifest = self.results / "aligned" / below / "manifest.parquet"
        node.parts = self._people(manifest, set(header.files))
        return node

    def _image(self, path: Path) -> Node:
        """One image, or all of a manifest."""
        if path.suffix == ".parquet":
            return Node(str(path), {"sha256": sha256_file(path)}, parts=self._people(path, None))
        manifest = next((p / "manifest.parquet" for p in path.parents if _has_manifest(p)), None)
        if manifest is None:
            raise StepError(f"there is no manifest above {path}")
        file = path.relative_to(manifest.parent).as_posix()
        found = self._people(manifest, {file})
        if not found:
            return Node(str(path), {}, [f"{manifest} does not list {path}"])
        return found[0]

    def _people(self, manifest: Path, files: set[str] | None) -> list[Node]:
        """The images of a manifest, identity by identity, each identity's weights once."""
        if not manifest.is_file():
            return [Node(str(manifest), {}, [f"{manifest} is not there any more"])]
        frame = self._frame(manifest)
        frame = frame[frame["file"].notna()]
        if files is not None:
            frame = frame[frame["file"].isin(files)]
        nodes = []
        for identity in sorted(frame["identity"].unique(), key=natural_key):
            rows = frame[frame["identity"] == identity].to_dict("records")
            node = Node(f"{identity}: {len(rows)} images of {manifest.parent}")
            weights: dict[str, Node] = {}
            node.parts = [self._row(manifest.parent, row, weights) for row in rows]
            node.parts += list(weights.values())
            nodes.append(node)
        return nodes

    def _row(self, folder: Path, row: Mapping[str, Any], weights: dict[str, Node]) -> Node:
        """One image of a manifest, and what it was made from."""
        path = folder / row["file"]
        node = Node(str(path), {"sha256": row["sha256"]})
        if not path.is_file() or sha256_file(path) != row["sha256"]:
            node.doubts.append(f"{path} is not the image that its manifest lists")
        if row.get("source_file") is not None and "source_sha256" in row:
            node.parts = self._aligned_from(folder, row, weights)
        elif "prompt" in row:
            told = ("seed", "prompt", "steps", "guidance", "scheduler", "weights_sha256")
            node.facts |= {key: row[key] for key in told}
            lora = self._lora_folder(folder, row)
            if (lora / LORA).is_file() and str(lora) not in weights:
                weights[str(lora)] = self._weights(lora)
            found = weights.get(str(lora))
            if found and found.facts.get("sha256") != row["weights_sha256"]:
                node.doubts.append(f"{path} was sampled with other weights than {lora / LORA}")
        elif row.get("source"):
            node.facts["photograph"] = row["source"]
        return node

    def _aligned_from(
        self, folder: Path, row: Mapping[str, Any], weights: dict[str, Node]
    ) -> list[Node]:
        below = folder.resolve().relative_to((self.results / "aligned").resolve())
        if below.parts == ("wild",):
            return [Node(row["source_file"], {"sha256": row["source_sha256"]})]
        home = self.results / ("dataset" if below.parts == ("real",) else Path("samples") / below)
        frame = self._frame(home / "manifest.parquet")
        match = frame[frame["file"] == row["source_file"]].to_dict("records")
        if not match:
            doubt = f"{home / 'manifest.parquet'} does not list {row['source_file']}"
            return [Node(row["source_file"], {"sha256": row["source_sha256"]}, [doubt])]
        source = self._row(home, match[0], weights)
        if match[0]["sha256"] != row["source_sha256"]:
            source.doubts.append(f"{folder / row['file']} was aligned from another image")
        return [source]

    def _lora_folder(self, samples: Path, row: Mapping[str, Any]) -> Path:
        return self.results / "loras" / row["base_model"] / row["method"] / row["identity"]

    def _weights(self, folder: Path) -> Node:
        path, place = folder / LORA, folder / "training.json"
        node = Node(str(path), {"sha256": sha256_file(path)})
        if not place.is_file():
            node.doubts.append(f"{place} is missing: nothing is known of these weights' training")
            return node
        record = json.loads(place.read_text(encoding="utf-8"))
        if record["weights_sha256"] != node.facts["sha256"]:
            node.doubts.append(f"{path} is not the file that {place} is about")
        node.facts |= {key: record[key] for key in ("method", "seed", "key", "versions")}
        node.facts["base_model"] = record["base_model"]["name"]
        node.parts = self._photographs(record["images"], path)
        return node

    def _photographs(self, images: Mapping[str, str], path: Path) -> list[Node]:
        home = self.results / "dataset"
        frame = self._frame(home / "manifest.parquet")
        by_file = {row["file"]: row for row in _records(frame)}
        nodes = []
        for file, digest in images.items():
            row = by_file.get(file)
            node = Node(str(home / file), {"sha256": digest})
            if row is None or row["sha256"] != digest:
                node.doubts.append(f"{path} was trained on another {home / file}")
            else:
                node.facts["photograph"] = row["source"]
            nodes.append(node)
        return nodes


def _records(frame: pd.DataFrame) -> Iterable[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _has_manifest(folder: Path) -> bool:
    return (folder / "manifest.parquet").is_file()
