"""A full disk: one sentence, nothing half-written, and a plain rerun ends as if undisturbed.

As root the disk is a small tmpfs; without, a limit on the size of files takes its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline_steps.io.hashes import sha256_file

sys.path.insert(0, str(Path(__file__).parent))

from step_processes import Ended, run_step

RESULTS = "results/demo"
FINETUNE = (
    "finetune --config {r}/config/finetune/demo/idbooth.json --dataset {r}/dataset"
    " --prior {r}/prior/demo --share 0 --shares 2 --out {out}"
)
SAMPLE = (
    "sample --config {r}/config/sample/demo/idbooth/base.json --dataset {r}/dataset"
    " --loras {r}/loras/demo/idbooth --share 0 --shares 2 --batch-size 1 --out {out}"
)
PREPARE = "prepare --config {r}/config/prepare.json --out {out}"
FEATURES = (
    "features --config {r}/config/features/demo_recogniser.json --aligned {r}/aligned/real"
    " --out {out}/real.safetensors"
)
RECOGNISE = (
    "recognise --config {r}/config/recognise/demo-idbooth-base/seed0.json"
    " --aligned {r}/aligned/demo/idbooth/base"
    " --validation data/demo_world/benchmarks/validation.bin --out {out}"
)


@dataclass(frozen=True)
class Disk:
    """A disk that becomes full.

    Attributes:
        folder: On it.
        run: Runs a step with so many bytes to write; None: as many as it wants.
    """

    folder: Path
    run: Callable[[str, int | None], Ended]


@pytest.fixture
def disk(finished_study: Path, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and _mount(folder, "size=64M")

    def run(command: str, left: int | None) -> Ended:
        if mounted:
            used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
            size = 64 * 2**20 if left is None else -(-(used + left) // 4096) * 4096
            assert _mount(folder, f"remount,size={size}")
        line = command.format(r=RESULTS, out=folder / "out")
        limit = None if mounted else left
        return run_step(finished_study, line, tmp_path / "log.txt", largest_file=limit)

    yield Disk(folder / "out", run)
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(folder: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    )
    return done.returncode == 0


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Step, bytes that are left on the disk, and what the sentence names.
CASES = {
    "finetune": (FINETUNE, 200_000, "disk/out"),
    "sample": (SAMPLE, 40_000, "disk/out"),
    "prepare": (PREPARE, 60_000, ".png"),
    "features": (FEATURES, 4096, "real.safetensors"),
    "recognise": (RECOGNISE, 16_384, "/disk"),
}


@pytest.mark.parametrize("step", CASES)
def test_a_full_disk_is_one_sentence_and_the_rerun_ends_as_an_undisturbed_one(
    step: str, disk: Disk, finished_study: Path, tmp_path: Path
) -> None:
    command, left, file = CASES[step]
    line = command.format(r=RESULTS, out=tmp_path / "undisturbed")
    undisturbed = run_step(finished_study, line, tmp_path / "undisturbed.txt")
    assert undisturbed.status == 0, undisturbed.errors
    failed = disk.run(command, left)
    assert failed.status == 2, failed.errors
    assert "Traceback" not in failed.errors
    assert failed.sentence.startswith(f"error: {disk.folder.parent}"), failed.errors
    assert file in failed.sentence and "and run again" in failed.sentence
    whole, found = contents(tmp_path / "undisturbed"), contents(disk.folder)
    lasting = {name for name in found if name in whole and Path(name).name != "items.json"}
    assert all(found[name] == whole[name] for name in lasting)
    rerun = disk.run(command, None)
    assert rerun.status == 0, rerun.errors
    assert contents(disk.folder) == whole
