from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline_steps.io import hashes
from pipeline_steps.io.hashes import (
    folder_listing,
    remembered_sha256,
    sha256_bytes,
    sha256_file,
    sha256_json,
)

# FIPS 180-2, appendix B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_bytes_and_files_give_the_standard_digest(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == ABC
    assert sha256_file(tmp_path / "abc") == ABC


def test_json_digest_ignores_key_order_and_tells_values_apart() -> None:
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json({"a": 1, "b": 2}) != sha256_json({"a": 2, "b": 1})
    assert sha256_json([1]) != sha256_json([1.5])


def test_large_files_and_folders_are_read_again_only_where_size_or_time_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    large, folder = tmp_path / "large.bin", tmp_path / "photos"
    large.write_bytes(b"x" * hashes.LARGE)
    (folder / "ID_1").mkdir(parents=True)
    (folder / "ID_1/0.jpg").write_bytes(b"face")
    before = remembered_sha256(large), folder_listing(folder)
    assert before[0] == sha256_file(large)
    assert before[1]["files"] == 1
    notes = "".join(path.read_text() for path in (tmp_path / hashes.REMEMBERED).iterdir())
    assert sha256_file(folder / "ID_1/0.jpg") not in notes
    with monkeypatch.context() as without_reading:
        without_reading.delattr(hashes, "sha256_file")
        assert (remembered_sha256(large), folder_listing(folder)) == before
    for path in (large, folder / "ID_1/0.jpg"):
        os.utime(path, (1, 1))
    assert (remembered_sha256(large), folder_listing(folder)) == before
    large.write_bytes(b"y" * hashes.LARGE)
    (folder / "ID_1/0.jpg").write_bytes(b"ecaf")
    assert remembered_sha256(large) == sha256_file(large)
    assert folder_listing(folder)["sha256"] != before[1]["sha256"]
