"""A tiny random pipeline of the real architecture, written and opened by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.random_pipeline import write_random_pipeline
from pipeline_steps.settings.base import Weights


def weights_of(folder: Path) -> Weights:
    return Weights(
        name="tiny",
        task="base_model",
        architecture="stable-diffusion",
        source=str(folder),
        licence="Apache-2.0",
        commercial_use=True,
        options={"resolution": 32},
    )


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base(pipeline_folder: Path) -> BaseModel:
    return load_base_model(weights_of(pipeline_folder))
