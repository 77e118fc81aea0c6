"""A tiny random pipeline of the real architecture, written and opened by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_models import write_random_pipeline
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from tests.diffusion.tiny_study import base_weights


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base(pipeline_folder: Path) -> BaseModel:
    return load_base_model(base_weights(pipeline_folder))
