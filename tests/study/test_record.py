"""A record says what a file was made from, and of whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.record import people_of, read_record, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ScoreSettings

FROZEN = Frozen("s", "score", 0, ScoreSettings(), code="c0de")


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    features, manifest = tmp_path / "features.safetensors", tmp_path / "manifest.parquet"
    save_features(features, np.zeros((2, 3), np.float32), ["ID_10/0.png", "00001.png"])
    rows = [{"identity": "ID_2", "file": "a"}, {"identity": None, "file": "b"}]
    write_manifest(manifest, rows, ("identity", "file"))
    return [features, manifest]


def made(path: Path, inputs: list[Path], frozen: Frozen[ScoreSettings] = FROZEN) -> Path:
    path.write_text("a number")
    write_record(record_place(path), frozen, [path], inputs)
    return path


def test_people_are_those_of_all_inputs_through_records_of_records(
    tmp_path: Path, inputs: list[Path]
) -> None:
    score = made(tmp_path / "score.csv", inputs)
    table = made(tmp_path / "table.csv", [score])
    assert people_of(table) == {"ID_2", "ID_10"}
    record = read_record(table)
    assert record is not None and record["people"] == ["ID_2", "ID_10"]


def test_the_key_is_of_inputs_and_configuration(tmp_path: Path, inputs: list[Path]) -> None:
    def key(**changes: str) -> str:
        path = made(tmp_path / "score.csv", inputs, replace(FROZEN, **changes))
        return str(json.loads(record_place(path).read_text())["key"])

    known = key()
    assert key() == known
    assert key(code="other") != known
    save_features(inputs[0], np.ones((2, 3), np.float32), ["ID_10/0.png", "00001.png"])
    assert key() != known


def test_versions_are_those_of_all_that_it_was_made_from(tmp_path: Path) -> None:
    features = tmp_path / "features.safetensors"
    note = ["features: torch 1.2.3"]
    rows = np.zeros((1, 3), np.float32)
    save_features(features, rows, ["ID_1/0.png"], versions=json.dumps(note))
    score = made(tmp_path / "score.csv", [features])
    table = read_record(made(tmp_path / "table.csv", [score]))
    assert table is not None and set(note) <= set(table["versions"])
