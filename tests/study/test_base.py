from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Section, load_frozen


class Knobs(Section):
    rank: int = Field(4, ge=1)
    rate: float = 1e-4


def frozen(tmp_path: Path, **changes: object) -> Path:
    content = {
        "study": "s",
        "step": "finetune",
        "seed": 3,
        "settings": {"rank": 8},
        "weights": {
            "base_model": {
                "name": "demo",
                "task": "base_model",
                "architecture": "stable-diffusion",
                "source": "x",
                "licence": "Apache-2.0",
                "commercial_use": True,
            }
        },
        "variant": {"method": "dreambooth"},
    } | changes
    path = tmp_path / "finetune.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def test_a_frozen_file_gives_typed_settings(tmp_path: Path) -> None:
    read = load_frozen(frozen(tmp_path), Knobs)
    assert read.settings == Knobs(rank=8, rate=1e-4)
    assert (read.study, read.step, read.seed) == ("s", "finetune", 3)
    assert read.variant == {"method": "dreambooth"}
    assert isinstance(read.weights["base_model"], Weights)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"rnak": 8}}, "unknown key 'rnak'; did you mean 'rank'?"),
        ({"settings": {"rank": 0}}, "rank: expected at least 1 (found 0)"),
        ({"weights": {"base_model": {"name": "demo"}}}, "weights.base_model"),
        ({"variant": None}, "expected"),
    ],
)
def test_unfit_files_are_errors_that_name_the_key(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    path = frozen(tmp_path, **changes)
    with pytest.raises(StepError) as caught:
        load_frozen(path, Knobs)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_and_broken_files_are_step_errors(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="is missing"):
        load_frozen(tmp_path / "x.json", Knobs)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StepError, match="not JSON"):
        load_frozen(tmp_path / "x.json", Knobs)


def test_sections_never_change() -> None:
    with pytest.raises(ValidationError):
        Knobs().rank = 5  # type: ignore[misc]
