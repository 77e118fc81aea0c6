"""How tests talk to SLURM."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tests.workflow.small_study import ROOT, snakemake

# The cluster's cards are none, and it has no other users.
CPU = {
    "CONSENTED_FACES_DEVICE": "cpu",
    "PYTHONPATH": str(Path(__file__).with_name("impatient")),
}


def slurm(*command: str) -> str:
    """Output of one of SLURM's commands."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until(true: Callable[[], object], seconds: float = 300) -> None:
    """Look again and again; a test fails when it takes longer."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def write_profile(folder: Path, *, uncommented: Sequence[str] = (), **changes: object) -> Path:
    """The project's profile for SLURM, with account and partition, and less waiting.

    Args:
        folder: For the profile; made if missing.
        uncommented: Keys that the profile offers in comments, to be taken with what is below them.
        changes: Other keys, with _ for -, and their values.
    """
    text = (ROOT / "profiles" / "slurm" / "config.yaml").read_text("utf-8")
    for key in uncommented:
        block = re.search(rf"^# {key}:.*\n(#   .*\n)*", text, re.MULTILINE)
        assert block, key
        text = text.replace(block[0], re.sub(r"^# ", "", block[0], flags=re.MULTILINE))
    settings = yaml.safe_load(text)
    settings["default-resources"] |= {"slurm_account": "test", "slurm_partition": "test"}
    settings |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 1}
    settings |= {key.replace("_", "-"): value for key, value in changes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def run(project: Path, profile: Path, *targets: str) -> str:
    """Output of a run of a project's workflow through SLURM, which has to succeed."""
    return snakemake(project, *targets, "--workflow-profile", str(profile), **CPU)


def newest_job(rule: str, wildcards: str) -> str:
    """Number of the SLURM job that was submitted last for a job of the workflow, ended or not."""
    lines = slurm("squeue", "--states=all", "--noheader", "--format=%A %k").splitlines()
    return str(
        max(
            int(number)
            for number, comment in (line.split(" ", 1) for line in lines)
            if comment == f"rule_{rule}_wildcards_{wildcards}"
        )
    )


def properties(job: str) -> dict[str, str]:
    """What SLURM says about a job, as long as it remembers it."""
    words = slurm("scontrol", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)
