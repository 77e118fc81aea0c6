"""State of unfinished work: back to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline_steps.io.checkpoint import Checkpoint

STATE = {
    "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,  # not contiguous
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}
VALUES = {"rate": 0.1 + 0.2, "history": [[1, None]]}


def test_state_comes_back_as_it_was_and_the_last_one_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "folder" / "state", "key")
    assert checkpoint.load() is None
    checkpoint.save({"a": torch.zeros(1)})
    checkpoint.save(STATE, VALUES)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded[1] == VALUES
    assert loaded[0].keys() == STATE.keys()
    assert all(torch.equal(loaded[0][name], STATE[name]) for name in STATE)
    checkpoint.clear()
    checkpoint.clear()
    assert not checkpoint.path.parent.exists()


def test_clearing_leaves_what_others_put_there(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key")
    checkpoint.save(STATE)
    (tmp_path / "model").write_text("")
    checkpoint.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_state_under_another_key_is_not_read(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "state", "key").save(STATE)
    assert Checkpoint(tmp_path / "state", "other").load() is None


def test_a_damaged_file_is_not_read_wherever_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key")
    checkpoint.save(STATE)
    whole = checkpoint.path.read_bytes()
    for content in (b"", whole[:7], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        checkpoint.path.write_bytes(content)
        assert checkpoint.load() is None
        assert "is damaged and not used" in capsys.readouterr().err
