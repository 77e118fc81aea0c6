"""An upgrade in mid-study is noted in all that follows, told, and refused in one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study import versions
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.key import key
from pipeline_steps.study.record import write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ScoreSettings
from pipeline_steps.study.store import Item, Rows, Store
from pipeline_steps.study.versions import (
    made_with,
    mixtures,
    refuse_mixed_versions,
    told,
    versions_behind,
)

FROZEN = Frozen("s", "score", 0, ScoreSettings(), libraries=("torch",))
OLD, NEW = ["finetune: torch 2.7", "finetune: python 3.11"], ["finetune: torch 2.8"]


def test_a_note_names_the_libraries_of_the_steps_code_and_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "_version", lambda name: f"1 of {name}")
    noted = made_with(replace(FROZEN, libraries=("cv2", "torch")))
    assert [note.rpartition(" ")[0] for note in noted] == [
        "score: cv2 1 of",
        "score: python",
        "score: torch 1 of",
    ]


def test_no_version_is_in_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    known = key(FROZEN)
    monkeypatch.setattr(versions, "_version", lambda name: "9")
    assert key(FROZEN) == known == key(replace(FROZEN, libraries=()))


def test_items_keep_the_versions_that_they_were_made_with(tmp_path: Path) -> None:
    Store(tmp_path, OLD).add({"a": Item("k")})
    later = Store(tmp_path, NEW)
    later.add({"b": Item("k")})
    again = later.find("a", "k")
    assert again is not None
    later.add({"a": replace(again, facts={"measured": 1})})  # measured anew, made as before
    assert Store(tmp_path).versions("a") == {*OLD}
    assert Store(tmp_path).versions("ab") == {*OLD, *NEW}


def test_rows_keep_the_versions_that_they_were_made_with(tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    one = np.ones((1, 2), np.float32)
    first = Rows(out, "k", OLD)
    first.add(["i1"], ["a"], one)
    first.write(["i1"], ["a"], behind=["align: cv2 4"])
    assert versions_behind(out) == sorted([*OLD, "align: cv2 4"])
    second = Rows(out, "k", NEW)
    second.add(["i2"], ["b"], one)
    second.write(["i1", "i2"], ["a", "b"])
    assert versions_behind(out) == sorted([*OLD, *NEW])
    Rows(out, "k", NEW).write(["i2"], ["b"])
    assert mixtures({out: versions_behind(out)}) != []  # earlier rows share their notes
    fresh = Rows(out, "other", NEW)
    fresh.add(["i2"], ["b"], one)
    fresh.write(["i2"], ["b"])
    assert versions_behind(out) == NEW


def scored(root: Path, name: str, notes: list[str]) -> Path:
    features, manifest = root / f"{name}.safetensors", root / f"{name}.parquet"
    save_features(features, np.ones((1, 2), np.float32), ["ID_1/a"], versions=json.dumps(notes))
    write_manifest(manifest, [{"identity": "ID_1", "file": "a"}], versions=["align: cv2 4"])
    table = root / f"{name}.csv"
    write_text(table, "numbers\n")
    write_record(record_place(table), FROZEN, [table], [features, manifest])
    return table


def test_notes_go_with_all_that_is_made_from_a_file(tmp_path: Path) -> None:
    found = versions_behind(scored(tmp_path, "a", OLD))
    assert {*OLD, "align: cv2 4"} < set(found)
    assert any(note.startswith("score: torch ") for note in found)


def test_two_versions_in_one_step_are_refused_and_told(tmp_path: Path) -> None:
    old, new = scored(tmp_path, "old", OLD), scored(tmp_path, "new", NEW)
    refuse_mixed_versions([old])
    with pytest.raises(StepError) as caught:
        refuse_mixed_versions([old, new])
    for word in ("torch in finetune 2.7", "2.8", str(old), str(new), "allow_mixed_versions"):
        assert word in str(caught.value)


def test_two_versions_in_two_steps_are_told_and_not_refused() -> None:
    behind = {Path("a"): [*OLD, "sample: torch 2.8"]}
    assert mixtures(behind) == []
    assert "torch 2.7 (finetune; behind a) and 2.8 (sample; behind a)." in told(behind)


def test_two_versions_of_python_alone_are_equal() -> None:
    behind = {Path("a"): ["score: python 3.11"], Path("b"): ["score: python 3.12"]}
    assert told(behind) == "" and mixtures(behind) == []


def test_a_broken_file_has_no_notes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.safetensors", "c.json"):
        write_text(tmp_path / name, "")
        assert versions_behind(tmp_path / name) == []
