"""Results of a study that is only made up: what the explorer reads of it, and quickly written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from pipeline_steps.explore import main
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import save_features
from pipeline_steps.naming import natural_key

METHODS = ("untuned", "dreambooth", "idbooth")
PLACES = ("beach", "office", "forest", "city street")
AUDIT = ("identity", "file", "shows", "own_similarity", "copy", "stranger")
PICTURES = 40  # that files are links to


class ShownStudy:
    """`people` with `photographs` each, and of each `images` for every method.

    Of everybody's images the last is left out, and untuned ones show nobody. Photographs are listed
    also of ID_0, who has no part in the study.
    """

    def __init__(self, root: Path, *, people: int = 3, photographs: int = 3, images: int = 8):
        self.root, self.count = root, images
        self.rng = np.random.default_rng(0)
        self.people = [f"ID_{number + 1}" for number in range(people)]
        self.centres = {name: self.rng.standard_normal(16) for name in self.people}
        for number in range(PICTURES):
            pixels = self.rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            write_png(root / f"pictures/{number}.png", pixels)
        self.sources: dict[str, list[str]] = {}
        self.photographs(photographs)
        for method in METHODS:
            self.variant(method)

    def photographs(self, count: int) -> None:
        """The prepared dataset and its aligned faces."""
        rows: list[dict] = []
        for name in ("ID_0", *self.people):
            for place in range(count):
                row = {"identity": name, "file": f"images/{name}/{place}.png", "camera": place}
                rows.append(row | {"kept": name != "ID_0", "reason": ""})
        rows[0]["reason"] = "no consent"
        rows.append({"identity": "ID_1", "file": None, "kept": False, "reason": "no face found"})
        write_manifest(self.root / "dataset/manifest.parquet", rows, ["camera", *rows[0]][1:])
        table = [
            {"identity": name, "gender": "FM"[place % 2], "consent": "signed"}
            for place, name in enumerate(self.people)
        ]
        write_csv(self.root / "dataset/identities.csv", table, list(table[0]))
        kept = [row for row in rows if row["kept"]]
        faces = [
            {"identity": row["identity"], "file": row["file"].removeprefix("images/")}
            | {"source_file": row["file"], "kept": True, "reason": ""}
            for row in kept
        ]
        self.files("dataset", [str(row["file"]) for row in kept])
        self.aligned("real", faces, spread=0.2)

    def variant(self, method: str) -> None:
        """Samples of a method, their faces, features and audit."""
        source, rows = f"demo/{method}/complex", []
        for name in self.people:
            for index in range(self.count):
                word = "" if method == "untuned" else "sks "
                prompt = f"photo of {word}person, {PLACES[index % len(PLACES)]}"
                rows.append(
                    {"identity": name, "index": index, "attempt": 0, "file": f"{name}/{index}.png"}
                    | {"prompt": prompt, "seed": 2**62 + index, "kept": True, "reason": ""}
                )
        write_manifest(self.root / f"samples/{source}/manifest.parquet", rows)
        self.files(f"samples/{source}", [str(row["file"]) for row in rows])
        faces = []
        for row in rows:
            out = row["index"] == self.count - 1
            faces.append(
                {"identity": row["identity"], "file": None if out else row["file"]}
                | {"source_file": row["file"], "kept": not out, "reason": "no face" * out}
            )
        self.aligned(source, faces, spread=3.0 if method == "untuned" else 0.5)
        audit = [
            {"identity": face["identity"], "file": face["file"], "own_similarity": 0.5}
            | {"shows": "nobody" if method == "untuned" else "own", "copy": False}
            | {"stranger": False}
            for face in faces
            if face["kept"]
        ]
        write_csv(self.root / f"audit/{source}.csv", audit, AUDIT)

    def files(self, folder: str, names: list[str]) -> None:
        for place, name in enumerate(names):
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.root / f"pictures/{place % PICTURES}.png", path)

    def aligned(self, source: str, faces: list[dict], spread: float) -> None:
        """Aligned faces, with features by two judges, quality and pose."""
        write_manifest(self.root / f"aligned/{source}/manifest.parquet", faces)
        files = sorted((face["file"] for face in faces if face["kept"]), key=natural_key)
        self.files(f"aligned/{source}", files)
        centres = np.stack([self.centres[file.split("/")[0]] for file in files])
        for extractor, task, width in (
            ("judge_a", "recogniser", 16),
            ("judge_b", "recogniser", 16),
            ("quality_net", "quality", 1),
            ("pose_net", "pose", 3),
        ):
            rows = self.rng.standard_normal((len(files), width))
            rows = centres + spread * rows if task == "recogniser" else 20 * rows
            path = self.root / f"features/{source}/{extractor}.safetensors"
            save_features(path, rows.astype(np.float32), files, task=task, extractor=extractor)
            self.sources.setdefault(source, []).append(str(path))

    def explore(self, **settings: object) -> Path:
        """Run the step; the page."""
        frozen = {"study": "shown", "step": "explore", "seed": 0, "weights": {}, "variant": {}}
        place = self.root / "explore.json"
        place.write_text(json.dumps(frozen | {"settings": settings}))
        variants = [source for source in self.sources if source != "real"]
        page = self.root / "explorer/index.html"
        argv = ["--config", place, "--dataset", self.root / "dataset", "--out", page]
        argv += ["--aligned", *self.listed("aligned/{}/manifest.parquet", self.sources)]
        argv += ["--features", *(path for paths in self.sources.values() for path in paths)]
        argv += ["--samples", *self.listed("samples/{}/manifest.parquet", variants)]
        argv += ["--audits", *self.listed("audit/{}.csv", variants)]
        assert main(list(map(str, argv))) == 0
        return page

    def listed(self, path: str, sources: list[str] | dict[str, list[str]]) -> list[Path]:
        return [self.root / path.format(source) for source in sources]
