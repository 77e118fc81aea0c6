"""Checkpoints: all members of one step, one key only, and nothing left when they are done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline_steps.diffusion.training import run as checkpoints
from pipeline_steps.diffusion.training.fleet import State, join_rows, take_rows
from pipeline_steps.diffusion.training.run import SavedStates

KEYS = {"ID_1": "a", "ID_2": "b", "ID_10": "c"}


def state(step: int, count: int = 3) -> State:
    generator = torch.Generator().manual_seed(step)
    return {
        "weights": torch.randn(count, 5, generator=generator),
        "losses": torch.randn(count, step, 4, generator=generator),
        "step": torch.full((count,), step),
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def equal(found: State | None, whole: State, k: int) -> bool:
    wanted = take_rows(whole, [k])
    return found is not None and all(torch.equal(found[name], wanted[name]) for name in whole)


def test_rows_come_back_bit_for_bit_and_the_newest_generation_replaces_the_others(
    tmp_path: Path,
) -> None:
    store = SavedStates(tmp_path, KEYS)
    for step in (9, 20, 100):
        store.save(list(KEYS), state(step))
    rows = [store.latest(identity) for identity in KEYS]
    assert all(equal(row, state(100), k) for k, row in enumerate(rows))
    assert files(tmp_path) == ["ID_1.safetensors", "ID_10.safetensors", "ID_2.safetensors"]
    joined = join_rows([row for row in rows if row is not None])
    assert all(torch.equal(joined[name], value) for name, value in state(100).items())


def test_a_member_may_go_on_in_another_fleet(tmp_path: Path) -> None:
    store = SavedStates(tmp_path, KEYS)
    store.save(list(KEYS), state(10))
    store.save(["ID_2"], state(30, 1))
    assert equal(store.latest("ID_2"), state(30, 1), 0)
    assert equal(store.latest("ID_10"), state(10), 2)


def test_another_key_is_never_read(tmp_path: Path) -> None:
    SavedStates(tmp_path, KEYS).save(list(KEYS), state(10))
    changed = SavedStates(tmp_path, KEYS | {"ID_2": "other"})
    assert changed.latest("ID_2") is None
    assert changed.latest("ID_1") is not None


def test_removing_the_last_identity_removes_the_folder(tmp_path: Path) -> None:
    store = SavedStates(tmp_path / "checkpoints", KEYS)
    store.save(list(KEYS), state(10))
    store.remove("ID_1")
    assert store.latest("ID_1") is None and store.latest("ID_10") is not None
    for identity in KEYS:
        store.remove(identity)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_file_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SavedStates(tmp_path, KEYS)
    store.save(["ID_1"], state(10, 1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_delete", lambda paths: None)  # killed before it
        store.save(["ID_1"], state(20, 1))
    newest = max(tmp_path.glob("*/*"))
    content = newest.read_bytes()
    newest.write_bytes(
        {"cut": content[:-7], "altered": content[:-1] + b"\x7f", "empty": b""}[damage]
    )
    assert equal(store.latest("ID_1"), state(10, 1), 0)


def test_a_generation_that_was_not_completed_is_never_read_and_later_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SavedStates(tmp_path, KEYS)
    store.save(list(KEYS), state(10))

    class Killed(BaseException):
        pass

    def no_rename(path: object, target: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # As after SIGKILL between the writing of the members and the rename of their folder.
        patch.setattr("pipeline_steps.io.atomic._remove", lambda path: None)
        calls = iter(range(99))
        rename = os.replace
        patch.setattr(
            "pipeline_steps.io.atomic.os.replace",
            lambda a, b: rename(a, b) if next(calls) < len(KEYS) else no_rename(a, b),
        )
        with pytest.raises(Killed):
            store.save(list(KEYS), state(20))
    assert len(list(tmp_path.iterdir())) == 2
    assert all(equal(store.latest(identity), state(10), k) for k, identity in enumerate(KEYS))
    for identity in KEYS:
        store.remove(identity)
    assert list(tmp_path.glob("*")) == []
