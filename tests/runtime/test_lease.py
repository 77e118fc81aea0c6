from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import candidate_gpus, gpu_lease, hold_gpus, parse_listing

LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)
  MIG 1g.10gb     Device  1: (UUID: MIG-dddd)
"""

# Takes the first cards that it can get, says which, and holds them until it is told to end.
JOB = """
import os, sys
from pipeline_steps.runtime import lease
lease.RETRY_SECONDS = 0.02
lease.random.sample = lambda cards, n: list(cards)
with lease.hold_gpus(int(sys.argv[1])) as cards:
    assert os.environ["CUDA_VISIBLE_DEVICES"].split(",") == cards and "torch" not in sys.modules
    print("holds", *cards, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def four_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("CONSENTED_FACES_GPU_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CONSENTED_FACES_GPU_SLOTS", raising=False)


class Job:
    """A process that wants cards; what it says comes one line after the other.

    Args:
        wanted: Number of cards.
        waits: It has to find too few at first.
        patient: It may find too few for a moment.
    """

    def __init__(self, wanted: int, *, waits: bool = False, patient: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.cards: list[str] = []
        if waits:
            assert f"waiting for {wanted} of 4 GPUs" in self.line()
        else:
            self.get(patient=patient)

    def line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "the job says nothing"
        return self.process.stdout.readline()

    def get(self, *, patient: bool = False) -> list[str]:
        line = self.line()
        if patient and " waiting for " in line:
            line = self.line()
        first, *self.cards = line.split()
        assert first == "holds", [first, *self.cards]
        return self.cards

    def end(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def four_jobs() -> Iterator[list[Job]]:
    """All four cards taken; what a test starts beside these has to end in it."""
    jobs = [Job(1) for _ in range(4)]
    yield jobs
    for job in jobs:
        job.kill()


def test_every_job_has_a_card_of_its_own_and_the_next_one_gets_what_is_given_back(
    four_jobs: list[Job],
) -> None:
    assert [job.cards for job in four_jobs] == [["0"], ["1"], ["2"], ["3"]]
    fifth = Job(1, waits=True)
    four_jobs[2].end()
    assert fifth.get() == ["2"]
    fifth.end()


def test_a_killed_job_frees_its_card(four_jobs: list[Job]) -> None:
    fifth = Job(1, waits=True)
    four_jobs[1].kill()
    assert fifth.get() == ["1"]
    fifth.kill()
    sixth = Job(1)  # killed or ended, nothing leaked
    assert sixth.cards == ["1"]
    sixth.end()


def test_who_wants_two_cards_keeps_none_while_waiting(four_jobs: list[Job]) -> None:
    """Else two such jobs, with a card each, would wait for each other for ever."""
    pair = Job(2, waits=True)
    four_jobs[3].end()
    single = Job(1, patient=True)
    assert single.cards == ["3"]
    four_jobs[0].end()
    single.end()
    assert pair.get() == ["0", "3"]
    pair.end()


def test_two_slots_let_two_small_jobs_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CONSENTED_FACES_GPU_SLOTS", "2")
    monkeypatch.setattr("random.sample", lambda cards, n: list(cards))
    taken = []
    leases = [hold_gpus(1) for _ in range(4)]
    for lease in leases:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
        lease.__enter__()
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["0", "1", "0", "1"]  # the second card before a second job on the first
    for lease in reversed(leases):
        lease.__exit__(None, None, None)


def test_cards_given_by_the_scheduler_are_taken_without_a_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa")
    with hold_gpus(1) as cards:
        assert cards == ["GPU-aaaa"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    assert not (tmp_path / "leases").exists()


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_no_visible_card_means_cpu(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with gpu_lease() as device:
        assert device == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_wanting_none_hides_all_cards() -> None:
    with gpu_lease(0) as device:
        assert device == "cpu"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_machine_without_driver_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert candidate_gpus() == []
    with gpu_lease() as device:
        assert device == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_card_that_pytorch_cannot_use_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StepError, match=r"cannot use GPU [0123], .* nvidia-smi"), gpu_lease():
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    with gpu_lease() as device:
        assert device == "cuda"


def test_the_device_can_be_the_cpu_although_a_card_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSENTED_FACES_DEVICE", "cpu")
    with gpu_lease() as device:
        assert device == "cpu"
        assert os.environ["CUDA_VISIBLE_DEVICES"] in set("0123")


def test_listed_cards_are_read_and_partitioned_ones_count_by_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert parse_listing(LISTING) == ["GPU-aaaa", "MIG-cccc", "MIG-dddd"]
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert candidate_gpus() == ["GPU-aaaa", "MIG-cccc", "MIG-dddd"]
