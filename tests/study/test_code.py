from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.study.key import modules_behind

ROOT = Path(__file__).parents[2]


def test_a_step_stands_on_itself_and_on_what_it_imports_inside_functions() -> None:
    behind = modules_behind("recognise")
    assert "pipeline_steps/recognise.py" in behind
    assert "pipeline_steps/recognition/training.py" in behind  # imported in run()
    assert "pipeline_steps/recognition/margins.py" in behind
    assert "pipeline_steps/seeds.py" in behind
    assert not any("/diffusion/" in path or "/evidence/" in path for path in behind)


def test_imports_of_imports_count() -> None:
    assert "pipeline_steps/faces/iresnet.py" in modules_behind("finetune")


@pytest.mark.parametrize("step", ["finetune", "align", "score", "tables", "gather"])
def test_cosmetic_and_empty_modules_do_not_count(step: str) -> None:
    behind = modules_behind(step)
    for module in ("logs", "errors", "lease", "atomic"):
        assert f"pipeline_steps/files/{module}.py" not in behind
    assert not any("/settings/" in path for path in behind)
    assert "pipeline_steps/files/__init__.py" not in behind


def test_data_files_come_with_their_module() -> None:
    assert "pipeline_steps/evidence/report/page.html.j2" in modules_behind("report")


def test_all_files_exist_and_are_sorted() -> None:
    behind = modules_behind("sample")
    assert behind == sorted(set(behind))
    assert all((ROOT / path).is_file() for path in behind)
