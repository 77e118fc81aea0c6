"""What several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.small_study import snakemake, write_config


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small study; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("study")
    write_config(folder)
    snakemake(folder)
    return folder
