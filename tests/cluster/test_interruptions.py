"""Trainings that SLURM interrupts go on and end as if nothing had been."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cluster.slurm import CPU, newest_job, properties, slurm, wait_until, write_profile
from tests.workflow.small_study import start, write_config

RESULTS = "results/demo"
LORAS = f"{RESULTS}/loras/demo/idbooth"
STEPS = 50
UNDISTURBED = """
import sys
from pipeline_steps import finetune
for share in "0123":
    finetune.main([*sys.argv[1:], "--share", share, "--shares", "4"])
"""


@dataclass
class Training:
    """A fine-tuning of one person that goes through SLURM, seen from outside.

    Attributes:
        project: Where the workflow runs.
        share: Number of the person's share, of four.
        numbers: Of the SLURM job of each start.
        resumed: Steps that were done already, of each start.
        saved: Steps that were done when a signal came.
    """

    project: Path
    share: int
    numbers: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    saved: int = 0

    @property
    def log(self) -> Path:
        """Of its present start."""
        return self.project / f"{RESULTS}/logs/finetune/demo/idbooth/{self.share}-of-4.log"

    def says(self, pattern: str) -> re.Match[str] | None:
        """Find something in the log."""
        return re.search(pattern, self.log.read_text("utf-8")) if self.log.exists() else None

    def wait_for_start(self) -> None:
        """Wait until it trains, and note from where."""
        wait_until(lambda: self.says(r"INFO finetune step \d+/"))
        found = self.says(r"going on from step (\d+)")
        self.resumed.append(int(found[1]) if found else 0)
        self.numbers.append(newest_job("finetune", f"demo_idbooth_{self.share}_4"))

    def wait_for_stop(self, because: str) -> None:
        """Wait until it has ended because of a signal, and note where."""
        pattern = rf"stopped: {because}: 1 identities are saved at step (\d+) of {STEPS}"
        wait_until(lambda: self.says(pattern))
        found = self.says(pattern)
        assert found
        self.saved = int(found[1])
        self.log.unlink()  # the next start's is told from it

    def kill(self) -> None:
        """End its process without any warning, as a node's failure does."""
        own = [b"-m", b"pipeline_steps.finetune"], [b"--share", str(self.share).encode()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                ours = (process / "cwd").resolve() == self.project
            except OSError:  # it has ended
                continue
            if ours and all(pair in map(list, pairwise(words)) for pair in own):
                os.kill(int(process.name), signal.SIGKILL)
        self.log.unlink()


@dataclass
class Interrupted:
    """Trainings that were interrupted, each in another way, and have ended.

    Attributes:
        project: Where the workflow ran.
        undisturbed: Weights of the same trainings when nobody interrupts.
        signalled: Got the signal that announces the end of an allocation.
        requeued: Was put back into the queue by hand, and killed after it had started again.
        preempted: Had to give way to a job of a higher priority.
    """

    project: Path
    undisturbed: Path
    signalled: Training
    requeued: Training
    preempted: Training


@pytest.fixture(scope="module")
def interrupted(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Four trainings on four cards, of which three are interrupted."""
    return interrupt(finished_study, tmp_path_factory.mktemp("interrupted"))


def interrupt(finished_study: Path, folder: Path) -> Interrupted:
    project = folder / "project"
    shutil.copytree(finished_study, project, symlinks=True)
    write_config(project, {"finetune.steps": STEPS})
    targets = [f"{LORAS}/shares/{share}-of-4.json" for share in range(4)]
    profile = write_profile(folder / "profile")
    workflow = start(project, *targets, "--workflow-profile", str(profile), **CPU)
    trainings = [Training(project, share) for share in range(4)]
    for training in trainings:
        training.wait_for_start()

    wants = ["--partition=urgent", "--gpus=1", "--mem=100"]
    slurm("sbatch", *wants, "--output=/dev/null", "--wrap=sleep 3")
    wait_until(lambda: any(training.says("stopped: SIGTERM") for training in trainings))
    (preempted,) = [training for training in trainings if training.says("stopped: SIGTERM")]
    preempted.wait_for_stop("SIGTERM")
    signalled, requeued, _ = [training for training in trainings if training is not preempted]
    slurm("scancel", "--signal=USR1", signalled.numbers[0])
    slurm("scontrol", "requeue", requeued.numbers[0])
    signalled.wait_for_stop("SIGUSR1")
    requeued.wait_for_stop("SIGTERM")
    undisturbed = folder / "undisturbed"
    reference = train_undisturbed(project, undisturbed)
    requeued.wait_for_start()
    requeued.kill()
    for training in (preempted, signalled, requeued):
        training.wait_for_start()

    output, _ = workflow.communicate()
    assert workflow.returncode == 0, output[-6000:]
    assert reference.wait() == 0
    return Interrupted(project, undisturbed, signalled, requeued, preempted)


def train_undisturbed(project: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the same trainings without SLURM, one after the other."""
    folders = {
        "--config": f"{RESULTS}/config/finetune/demo/idbooth.json",
        "--dataset": f"{RESULTS}/dataset",
        "--prior": f"{RESULTS}/prior/demo",
        "--out": str(out),
    }
    words = [word for item in folders.items() for word in item]
    return subprocess.Popen(
        [sys.executable, "-c", UNDISTURBED, *words],
        cwd=project,
        env=os.environ | CPU | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def test_weights_are_those_of_undisturbed_trainings_bit_for_bit(interrupted: Interrupted) -> None:
    weights = sorted(interrupted.undisturbed.glob("*/pytorch_lora_weights.safetensors"))
    assert len(weights) == 4
    for path in weights:
        ours = interrupted.project / LORAS / path.relative_to(interrupted.undisturbed)
        assert ours.read_bytes() == path.read_bytes()


def test_signalled_training_is_submitted_again_and_goes_on(interrupted: Interrupted) -> None:
    training = interrupted.signalled
    assert 0 < training.saved < STEPS
    assert training.resumed == [0, training.saved]
    assert len(set(training.numbers)) == 2


def test_requeued_training_goes_on_under_its_number(interrupted: Interrupted) -> None:
    training = interrupted.requeued
    assert 0 < training.saved < STEPS
    assert training.resumed[:2] == [0, training.saved]
    assert training.numbers[0] == training.numbers[1]
    assert properties(training.numbers[0])["Restarts"] == "1"


def test_killed_training_goes_on_from_what_was_last_saved(interrupted: Interrupted) -> None:
    training = interrupted.requeued
    assert training.resumed[2] == training.saved
    assert training.numbers[2] != training.numbers[1]


def test_preempted_training_goes_on(interrupted: Interrupted) -> None:
    training = interrupted.preempted
    assert 0 < training.saved < STEPS
    assert training.resumed == [0, training.saved]
