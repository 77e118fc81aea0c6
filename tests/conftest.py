"""What several folders of tests share."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

# One thread, as the workflow gives its steps: sums then do not depend on what is computed together,
# here and in the processes that tests start. It has to be said before PyTorch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.workflow.small_study import (
    ROOT,
    fork_server,
    make_project,
    snakemake,
    watched,
    without_network,
)

# Files that take longest, longest first: two processes then end at about the same time. All tests
# of one file are run by one process, for what they share (`pytest -n 2 --dist loadfile`).
LONGEST = (
    "tests/workflow/test_stale_numbers.py",
    "tests/workflow/test_dag.py",
    "tests/workflow/test_rerun_matrix.py",
    "tests/devices/test_device_paths.py",
    "tests/faults/test_random_kills.py",
    "tests/test_followed_guides.py",
    "tests/demo_world/test_pretrain.py",
    "tests/faults/test_disk.py",
    "tests/workflow/test_withdrawal.py",
    "tests/test_finetune.py",
    "tests/diffusion/test_fleet.py",
    "tests/diffusion/test_against_peft.py",
    "tests/test_recognise.py",
    "tests/test_sample_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which files come first."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(ROOT).as_posix(), len(rank)))


@pytest.fixture(scope="session")
def finished_study(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A project with a finished small study, made without a network; tests leave it as it is.

    It is made once, in the folder that FINISHED_STUDY names: each process gets a copy.
    """
    folder = tmp_path_factory.mktemp("study") / "project"
    beside = tmp_path_factory.getbasetemp().parent / "finished_study"  # of xdist's processes
    alone = not hasattr(request.config, "workerinput")
    named = os.environ.get("FINISHED_STUDY")
    if alone and not named:
        make_study(folder)
        return folder
    made = Path(named or beside)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            making = made.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            make_study(making)
            making.rename(made)
    shutil.copytree(made, folder, symlinks=True)
    return folder


def make_study(folder: Path) -> None:
    """A small study, from archives to report."""
    make_project(folder)
    with fork_server(*without_network(), **watched(folder)) as variables:
        snakemake(folder, **variables)


def pytest_report_header() -> str:
    """A line at the top of pytest's output."""
    if without_network():
        return "small study: made in a network namespace without any network"
    return "small study: this machine gives no network namespace (unshare), so it is only watched"
