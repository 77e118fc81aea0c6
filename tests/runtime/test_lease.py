from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
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

# Notes when it held which card, as "<start> <end> <cards>".
JOB = """
import os, sys, time
from pipeline_steps.runtime import lease
lease.RETRY_SECONDS = 0.05
with lease.hold_gpus(int(sys.argv[1])) as cards:
    assert os.environ["CUDA_VISIBLE_DEVICES"].split(",") == cards and "torch" not in sys.modules
    print("start", time.monotonic(), *cards, flush=True)
    time.sleep(float(sys.argv[2]))
    print("end", time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def four_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("CONSENTED_FACES_GPU_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CONSENTED_FACES_GPU_SLOTS", raising=False)
    monkeypatch.setattr("pipeline_steps.runtime.lease.RETRY_SECONDS", 0.05)


def start(wanted: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(wanted), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def held_by(job: subprocess.Popen[str], *, killed: bool = False) -> tuple[float, float, list[str]]:
    """When a job that ended held which cards; a killed one until now."""
    output, _ = job.communicate(timeout=120)
    now = time.monotonic()
    assert job.returncode == (-signal.SIGKILL if killed else 0)
    lines = [line.split() for line in output.splitlines()]
    if not lines:  # killed before it held any
        return now, now, []
    return float(lines[0][1]), now if killed else float(lines[1][1]), lines[0][2:]


def assert_never_shared(spans: list[tuple[float, float, list[str]]]) -> None:
    for card in "0123":
        own = sorted((begin, end) for begin, end, cards in spans if card in cards)
        assert all(before[1] <= after[0] for before, after in pairwise(own))


def test_concurrent_jobs_never_share_a_card_and_use_all() -> None:
    jobs = [start(1, 0.15) for _ in range(10)] + [start(2, 0.15) for _ in range(2)]
    spans = [held_by(job) for job in jobs]
    assert sorted(len(cards) for _, _, cards in spans) == [1] * 10 + [2] * 2
    assert {card for _, _, cards in spans for card in cards} == set("0123")
    assert_never_shared(spans)


def test_killed_jobs_free_their_cards_for_the_jobs_that_wait() -> None:
    rng = random.Random(0)
    for _ in range(3):
        jobs = [start(1, 0.1) for _ in range(18)]
        victims = [start(1, 60) for _ in range(6)]
        others: list[tuple[float, float, list[str]]] = []
        for victim in victims:
            time.sleep(rng.uniform(0.05, 0.4))
            killing = time.monotonic()
            victim.kill()
            begin, _, cards = held_by(victim, killed=True)
            others.append((min(begin, killing), killing, cards))
        assert_never_shared(others + [held_by(job) for job in jobs])
        with ExitStack() as stack:  # nothing leaked: all four cards can be had at once
            os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
            assert len(stack.enter_context(hold_gpus(4))) == 4


def test_two_slots_let_two_small_jobs_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CONSENTED_FACES_GPU_SLOTS", "2")
    taken = []
    leases = [hold_gpus(1) for _ in range(4)]
    for lease in leases:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
        lease.__enter__()
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(taken) == ["0", "0", "1", "1"]
    assert set(taken[:2]) == {"0", "1"}  # the second card before a second job on the first
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
