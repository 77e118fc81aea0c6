"""The tests of this folder need a running SLURM, as tests/cluster/start-cluster.sh makes it."""

from __future__ import annotations

import shutil
from pathlib import Path

HERE = Path(__file__).parent


def has_cluster() -> bool:
    """Whether this machine has the cluster of start-cluster.sh."""
    link = Path("/etc/slurm/slurm.conf")
    return shutil.which("sbatch") is not None and link.is_symlink() and link.exists()


# Not collected elsewhere, and pytest's header says so.
collect_ignore_glob = [] if has_cluster() else ["test_*.py"]


def pytest_report_header() -> str:
    """A line at the top of pytest's output."""
    if has_cluster():
        return "tests/cluster: on this machine's SLURM"
    return "tests/cluster: left out, needs SLURM (tests/cluster/start-cluster.sh)"
