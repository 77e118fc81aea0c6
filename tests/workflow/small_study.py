"""A small study on the embedded world with its real weights, and how a test runs it.

It runs in a copy of the project, so that a test may change anything of it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline_steps.runtime.preloaded import preloaded

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "methods": ["untuned", "idbooth"],
    "prompt_sets": ["base"],
    "training_sets": ["demo/idbooth/base"],
    "shares": 2,
    "render_demo_world.participants": 4,
    "render_demo_world.photograph_size": 256,
    "render_demo_world.in_the_wild": 20,
    "render_demo_world.benchmark_pairs": 40,
    "render_demo_world.validation_pairs": 40,
    "prepare.positions": [3, 4, 5],
    "prior.images": 6,
    "prior.steps": 4,
    "prior.scheduler": "dpmsolver++",
    "finetune.steps": 8,
    "sample.images_per_identity": 4,
    "sample.steps": 4,
    "sample.scheduler": "dpmsolver++",
    "score.quality.replicates": 20,
    "score.identity.replicates": 20,
    "recognise.epochs": 2,
    "recognise.first_validated_epoch": 1,
}
CONFIG = "small.yaml"
NETWORK_LOG = "network.log"
LEFT_OUT = (".*", "results", "data", "tmp", "tests", "docs", "benchmarks", "*.egg-info")


def make_project(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """Copy the project to `folder`, which is not there, with the small study's configuration."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns("resources", *LEFT_OUT))
    (folder / "resources").symlink_to(ROOT / "resources")
    write_config(folder, changes)


def write_config(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """Write the study's configuration, the demo's with SMALL and the changes, into `folder`."""
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    for key, value in (SMALL | (changes or {})).items():
        *parents, last = key.split(".")
        part = config
        for name in parents:
            part = part[name]
        part[last] = value
    (folder / CONFIG).write_text(yaml.safe_dump(config))


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the workflow of a project; without a cluster, by a fork server.

    Args:
        folder: of the project, as make_project leaves it.
        arguments: of snakemake, targets first; without --workflow-profile, --cores 2 is given.
        variables: added to the environment, which is otherwise a bare one.
    """
    program = Path(sys.executable).with_name("snakemake")
    environment = bare_environment()
    cores = ["--cores", "2"]
    if "--workflow-profile" in arguments:
        cores = []
        del environment["SLURM_CONF"]
    elif "PYTHONPATH" not in variables:
        environment |= quick()
    return subprocess.Popen(
        [program, *arguments, *cores, "--configfile", CONFIG],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def snakemake(folder: Path, *arguments: str, **variables: str) -> str:
    """Output of a run of a project's workflow, which has to succeed."""
    job = start(folder, *arguments, **variables)
    output, _ = job.communicate()
    assert job.returncode == 0, _failures(output)
    return output


def bare_environment() -> dict[str, str]:
    """Variables without which nothing runs, and no SLURM.

    Snakemake's plugin for SLURM asks the controller at each start, and waits 9 seconds where it
    does not answer.
    """
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return kept | {"SLURM_CONF": "/dev/null"}


@contextmanager
def fork_server(*before: str, **variables: str) -> Iterator[dict[str, str]]:
    """Variables by which Snakemake and steps are forks of a process that has their libraries.

    Args:
        before: words before the server's command, so before all that it runs.
        variables: added to the server's environment and to those that are yielded.
    """
    watching = {"PYTHONPATH": str(Path(__file__).with_name("network_watch"))}
    with preloaded(bare_environment() | watching | variables, before) as known:
        yield variables | known | {"OMP_NUM_THREADS": "1"}


@cache
def quick() -> dict[str, str]:
    """Variables of a server that runs as long as the tests."""
    server = fork_server()
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()


@cache
def without_network() -> tuple[str, ...]:
    """Words before a command that take all networks from it; none where that isn't possible."""
    for words in (("unshare", "--net"), ("unshare", "--net", "--map-root-user")):
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "true"], capture_output=True).returncode == 0
        ):
            return words
    return ()


def watched(folder: Path) -> dict[str, str]:
    """A variable by which Python notes in ``folder / NETWORK_LOG`` what it asks the network."""
    return {"NETWORK_LOG": str(folder / NETWORK_LOG)}


def _failures(output: str) -> str:
    """What failed, from Snakemake's output: the failed jobs with their logs, and the end."""
    parts = output.split("Error in rule ")[1:]
    return "\n...\n".join([*(part[:3000] for part in parts), output[-2000:]])
