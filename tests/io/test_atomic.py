from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from pipeline_steps.io.atomic import atomic_path, write_bytes, write_json, write_text
from pipeline_steps.runtime.errors import StepError


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_of_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "part.bin").write_bytes(b"1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]


def test_parents_are_made_and_the_suffix_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "image.png"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass


def test_equal_objects_give_equal_json_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "ß"})
    write_json(tmp_path / "b.json", {"a": "ß", "b": [1, 2.5]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text(
        "utf-8"
    ) == '{\n "a": "ß",\n "b": [\n  1,\n  2.5\n ]\n}\n'


def test_json_refuses_numbers_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_bytes_round_trip(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.bin", b"\r\n\x00")
    assert (tmp_path / "x.bin").read_bytes() == b"\r\n\x00"


def test_a_disk_that_is_full_is_named_with_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails like a full disk: half-way through the write."""
    path = tmp_path / "model.bin"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StepError, match=rf"{path} cannot be written, .* and run again"):
            write_bytes(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(PermissionError, match="secret"),
        atomic_path(tmp_path / "table.csv"),
    ):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/secret")
