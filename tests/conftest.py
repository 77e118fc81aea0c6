"""What several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

# One thread, as the workflow gives its steps: sums then do not depend on what is computed together,
# here and in the processes that tests start. It has to be said before PyTorch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.workflow.small_study import make_project, snakemake, watched, without_network


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished small study, made without a network; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("study") / "project"
    make_project(folder)
    snakemake(folder, before=without_network(), **watched(folder))
    return folder


def pytest_report_header() -> str:
    """A line at the top of pytest's output."""
    if without_network():
        return "small study: made in a network namespace without any network"
    return "small study: this machine gives no network namespace (unshare), so it is only watched"
