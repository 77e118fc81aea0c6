from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.tensors import load_features
from pipeline_steps.study.store import Item, Rows, Store, link, twin


def test_an_item_is_found_under_its_key_as_long_as_its_files_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    store = Store(tmp_path)
    store.add({"a": store.item("k1", ["a.png"], seed=3)})
    again = Store(tmp_path)
    found = again.find("a", "k1")
    assert found is not None and found.facts == {"seed": 3}
    assert again.find("a", "k2") is None
    assert again.find("b", "k1") is None
    (tmp_path / "a.png").write_bytes(b"b")
    assert again.find("a", "k1") is None
    assert again.find("a", "k1", whole=False) == found
    (tmp_path / "a.png").unlink()
    assert again.find("a", "k1") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"kay": "k"}}'])
def test_a_broken_index_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "items.json").write_text(text)
    assert Store(tmp_path).find("a", "k") is None


def test_items_that_are_not_retained_are_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add({"a": Item("k"), "b": Item("k")})
    store.retain(["b", "c"])
    assert [Store(tmp_path).find(name, "k") is not None for name in "ab"] == [False, True]


def test_a_linked_file_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new"


def rows(path: Path, key: str = "k") -> Rows:
    return Rows(path, key, extractor="e")


def test_rows_are_used_again_for_the_same_image_and_key(tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    first = rows(out)
    assert first.missing(["i1", "i2", "i1"]) == [0, 1]
    first.add(["i1", "i2"], ["a", "b"], np.arange(4, dtype=np.float32).reshape(2, 2))
    assert first.write(["i1", "i2"], ["a", "b"]) == 2
    out.unlink()  # as a workflow manager does before it makes the file again
    assert rows(out).missing(["i2", "i3"]) == [1]
    assert rows(out, "other").missing(["i1", "i2"]) == [0, 1]
    second = rows(out)
    second.write(["i2"], ["b"])
    assert load_features(out).features.tolist() == [[2.0, 3.0]]
    assert rows(out).missing(["i1"]) == [0]  # what left the set leaves the twin too


def test_a_broken_twin_is_a_lost_one(tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    twin(out).write_bytes(b"no safetensors")
    assert rows(out).missing(["i1"]) == [0]
