"""Guides followed word for word in a copy of the project: files written, commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.small_study import make_project

ROOT = Path(__file__).parents[1]
BASE_MODELS = "pipeline_steps/diffusion/base_models/__init__.py"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the file that the text before it names last."""

    language: str
    text: str
    path: str


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = []
    for match in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        paths = re.findall(r"`((?:config|pipeline_steps|tests)/[\w./]+)`", text[: match.start()])
        content = "".join(
            line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)
        )
        found.append(Block(match[2], content, paths[-1] if paths else ""))
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    make_project(folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def write(project: Path, block: Block) -> None:
    """A file of its own, or a further entry of the registry."""
    path = project / block.path
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text("utf-8") + "\n" if block.path == "config/models.yaml" else ""
    path.write_text(before + block.text)


def run(project: Path, command: str) -> subprocess.CompletedProcess[str]:
    """One command of a page, with this interpreter's programs in the place of .venv's."""
    line = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").strip()
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        line.split(),
        cwd=project,
        env=kept | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_adding_a_method(project: Path) -> None:
    outputs = {}
    for block in blocks_of("adding-a-method.md"):
        if block.language == "sh":
            result = run(project, block.text)
            assert result.returncode == 0, result.stdout + result.stderr
            outputs[block.text.split()[0].rpartition("/")[2]] = result.stdout + result.stderr
        else:
            write(project, block)
    assert re.search(r"^finetune +2$", outputs["snakemake"], re.MULTILINE)
    assert "demo/squaredbooth: fine-tune cohort 0" in outputs["snakemake"]
    assert "1 passed" in outputs["python"]
    assert "squaredbooth" not in (ROOT / "pipeline_steps/diffusion/objectives.py").read_text()


def test_adding_a_base_model(project: Path) -> None:
    package = project / BASE_MODELS
    outputs = []
    for block in blocks_of("adding-a-base-model.md"):
        if block.language == "sh":
            outputs.append(run(project, block.text))
        elif block.path == BASE_MODELS:  # a function, then a line of the table
            text = package.read_text("utf-8")
            table = "ARCHITECTURES = {\n"
            new = block.text.startswith("def")
            added = f"{block.text}\n\n{table}" if new else table + block.text
            assert text.count(table) == 1
            package.write_text(text.replace(table, added))
        elif block.text.startswith("finetune:"):
            study = project / "config" / "sd15.yaml"
            study.write_text(study.read_text("utf-8") + textwrap.dedent(block.text))
        else:
            write(project, block)
    check, test = outputs
    assert check.returncode == 1
    assert "weights sd15 (base_model)" in check.stdout
    assert "from hub:owner/stable-diffusion-v1-5" in check.stdout
    assert "acceptance of the licence 'CreativeML Open RAIL-M'" not in check.stdout
    assert test.returncode == 0, test.stdout + test.stderr
    assert "1 passed" in test.stdout


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text("utf-8")
    assert content.count(before) == 1, before
    path.write_text(content.replace(before, text + before))


def test_adding_a_metric(project: Path) -> None:
    scoring = project / "pipeline_steps/evidence/scores/scoring.py"
    kinds = project / "pipeline_steps/evidence/tables/kinds.py"
    places = {
        "from pipeline_steps.metrics.mean_shift": (scoring, "from pipeline_steps.metrics.mmd"),
        '    "mean_shift",': (scoring, '    "extractors",\n)'),
        '        "mean_shift":': (scoring, '        "extractors": " ".join'),
        '    Column("mean_shift",': (kinds, '    Column("fd_inf",'),
    }
    for block in blocks_of("adding-a-metric.md"):
        if block.language == "sh":
            result = run(project, block.text)
            assert "1 passed" in result.stdout, result.stdout + result.stderr
            continue
        found = [start for start in places if block.text.startswith(start)]
        if found:
            path, before = places.pop(found[0])
            insert(path, before, block.text)
        else:
            write(project, block)
    assert not places
    shutil.copy(ROOT / "tests" / "test_score.py", project / "tests")
    name = "test_quality_compares_equal_numbers_with_each_reference"
    result = run(project, f".venv/bin/python -m pytest -q tests/test_score.py::{name}")
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def follow(project: Path, page: str, places: dict[str, tuple[str, str]]) -> list[str]:
    """Follow a page: blocks that begin as a key of `places` go before a text of a file.

    Returns:
        What its commands printed; all have to succeed.
    """
    outputs = []
    for block in blocks_of(page):
        if block.language == "sh":
            result = run(project, block.text)
            assert result.returncode == 0, result.stdout + result.stderr
            outputs.append(result.stdout + result.stderr)
            continue
        found = [start for start in places if block.text.startswith(start)]
        if found:
            file, before = places.pop(found[0])
            insert(project / file, before, block.text)
        else:
            write(project, block)
    assert not places
    return outputs


def test_adding_an_extractor(project: Path) -> None:
    extractors = "pipeline_steps/faces/extractors.py"
    places = {
        "def _mean_colour": (extractors, "EXTRACTORS: dict["),
        '    ("features", "mean-colour")': (extractors, '    ("features", "dinov2")'),
    }
    (output,) = follow(project, "adding-an-extractor.md", places)
    assert "1 passed" in output


def test_adding_an_artefact(project: Path) -> None:
    settings = "pipeline_steps/study/settings/evidence.py"
    scores = project / "workflow/rules/scores.smk"
    scores.write_text(scores.read_text("utf-8") + "\n# The end.\n", "utf-8")
    places = {
        '    "colours": A(': ("pipeline_steps/study/artefacts.py", '    "reference_scores": A('),
        "class ColoursSettings": (settings, "class EvidenceSections(Section):"),
        "    colours: ColoursSettings": (settings, "    audit: AuditSettings = "),
        "rule colours:": ("workflow/rules/scores.smk", "# The end."),
    }
    (output,) = follow(project, "adding-an-artefact.md", places)
    assert re.search(r"^colours +8$", output, re.MULTILINE)
    told = run(project, ".venv/bin/python -m pipeline_steps.colours --help")
    assert "Manifest of the variant's aligned images." in told.stdout, told.stderr
