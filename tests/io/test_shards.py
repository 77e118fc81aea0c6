"""Images in a shard are read as files are; packing replaces it as a whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.shards import SHARD, content_of, hash_of, pack, unpack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ID_1"
    place.mkdir()
    for name in "abc":
        (place / f"{name}.png").write_bytes(name.encode())
    pack(place, ["b.png", "a.png"])
    return place


def test_packed_images_are_members_and_read_as_before(folder: Path) -> None:
    with tarfile.open(folder / SHARD) as archive:
        assert archive.getnames() == ["ID_1/a.png", "ID_1/b.png"]
    assert sorted(path.name for path in folder.iterdir()) == ["c.png", SHARD]
    assert [content_of(folder / f"{name}.png") for name in "abc"] == [b"a", b"b", b"c"]
    assert [hash_of(folder / f"{name}.png") for name in "ac"] == [*map(sha256_bytes, (b"a", b"c"))]
    assert hash_of(folder / "d.png") == ""
    with pytest.raises(FileNotFoundError, match=r"d\.png"):
        content_of(folder / "d.png")


def test_a_newer_file_goes_before_its_member_and_into_the_next_shard(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"newer")
    assert content_of(folder / "a.png") == b"newer"
    with pytest.raises(FileNotFoundError):
        pack(folder, ["a.png", "d.png"])
    assert content_of(folder / "b.png") == b"b"
    pack(folder, ["a.png"])
    assert content_of(folder / "a.png") == b"newer" and hash_of(folder / "b.png") == ""
    unpack(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "c.png"]
    assert (folder / "a.png").read_bytes() == b"newer"


def test_a_broken_shard_holds_nothing(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"x" * 2000)
    assert hash_of(folder / "a.png") == ""
