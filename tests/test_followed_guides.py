"""Guides followed word for word in a copy of the project: files written, commands run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.small_study import bare_environment, make_project

ROOT = Path(__file__).parents[1]


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
        paths = re.findall(
            r"`((?:config|pipeline_steps|tests|docs|benchmarks)/[\w./]+)`", text[: match.start()]
        )
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
    return subprocess.run(
        line.split(),
        cwd=project,
        env=bare_environment() | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
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
    assert "demo/squaredbooth: fine-tune share 0" in outputs["snakemake"]
    assert "1 passed" in outputs["python"]
    assert "squaredbooth" not in (ROOT / "pipeline_steps/diffusion/objectives.py").read_text()


def test_adding_a_base_model(project: Path) -> None:
    outputs = []
    for block in blocks_of("adding-a-base-model.md"):
        if block.language == "sh":
            outputs.append(run(project, block.text))
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
    assert re.search(r"^colours +12$", output, re.MULTILINE)
    told = run(project, ".venv/bin/python -m pipeline_steps.colours --help")
    assert "Manifest of the variant's aligned images." in told.stdout, told.stderr


def test_adding_a_metric(project: Path) -> None:
    for folder in ("docs", "benchmarks"):
        shutil.copytree(ROOT / folder, project / folder, dirs_exist_ok=True)
    quality = "pipeline_steps/evidence/scores/quality.py"
    places = {
        "from pipeline_steps.metrics.mean_shift": (quality, "from pipeline_steps.metrics.mmd"),
        '    measure(\n        "mean_shift",': (quality, '    measure("fd_inf",'),
        "| `mean_shift`": ("docs/metrics.md", "| `kd` ↓"),
        '    "mean_shift": lambda': ("benchmarks/recomputed/sets.py", '    "fd_inf":'),
    }
    (output,) = follow(project, "adding-a-metric.md", places)
    assert "1 passed" in output
    # Scored, documented and recomputed: the tests that every metric meets.
    for name in ("test_score.py", "test_docs.py"):
        shutil.copy(ROOT / "tests" / name, project / "tests")
    (project / "tests/test_recomputed.py").write_text(RECOMPUTED)
    names = [
        "test_score.py::test_quality_compares_equal_numbers_with_each_reference",
        "test_docs.py::test_metrics_page_explains_every_column_and_no_other_table",
        "test_recomputed.py",
    ]
    tests = " ".join(f"tests/{name}" for name in names)
    result = run(project, f".venv/bin/python -m pytest -q {tests}")
    assert "3 passed" in result.stdout, result.stdout + result.stderr


RECOMPUTED = """
import sys

import numpy as np
import pytest

sys.path.insert(0, "benchmarks")


def test_the_second_implementation_agrees():
    from recomputed.sets import QUALITY, Compared

    from pipeline_steps.evidence.scores.quality import QUALITY_COLUMNS, SHOWN
    from pipeline_steps.metrics.mean_shift import mean_shift

    x, y = np.random.default_rng(0).normal(size=(2, 9, 3))
    rows = np.arange(9), np.arange(9)
    sets = Compared(lambda extractor: (x, y), rows, ("", ""), {"frechet_extractor": ""}, None)
    assert QUALITY["mean_shift"](sets) == pytest.approx(mean_shift(x, y))
    assert set(QUALITY) >= set(SHOWN) and set(QUALITY_COLUMNS) >= set(QUALITY)
"""
