"""What several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.small_study import make_project, snakemake


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished small study; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("study") / "project"
    make_project(folder)
    snakemake(folder)
    return folder
