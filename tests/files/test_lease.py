from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline_steps.files.lease import candidate_gpus, gpu_lease, parse_listing

LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)
  MIG 1g.10gb     Device  1: (UUID: MIG-dddd)
"""

# Notes when it held which card, as "<start> <end> <cards>".
JOB = """
import os, sys, time
from pipeline_steps.files import lease
lease.RETRY_SECONDS = 0.05
with lease.gpu_lease(int(sys.argv[1])) as device:
    assert device == "cuda" and "torch" not in sys.modules
    start = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print(start, time.monotonic(), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
"""


@pytest.fixture(autouse=True)
def four_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("CONSENTED_FACES_GPU_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CONSENTED_FACES_GPU_SLOTS", raising=False)
    monkeypatch.setattr("pipeline_steps.files.lease.RETRY_SECONDS", 0.05)


def start(wanted: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(wanted), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_concurrent_jobs_never_share_a_card_and_use_all() -> None:
    jobs = [start(1, 0.15) for _ in range(10)] + [start(2, 0.15) for _ in range(2)]
    held: dict[str, list[tuple[float, float]]] = {}
    for job in jobs:
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 0
        begin, end, cards = output.split()
        for card in cards.split(","):
            held.setdefault(card, []).append((float(begin), float(end)))
    assert set(held) == {"0", "1", "2", "3"}
    assert sum(len(spans) for spans in held.values()) == 14
    for spans in held.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_killed_job_frees_its_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    victim = start(2, 60)
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "leases").glob("*.lock"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    with gpu_lease(2) as device:
        assert device == "cuda"
        assert len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) == 2


def test_two_slots_let_two_small_jobs_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CONSENTED_FACES_GPU_SLOTS", "2")
    taken = []
    leases = [gpu_lease(1) for _ in range(4)]
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
    with gpu_lease(1) as device:
        assert device == "cuda"
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
