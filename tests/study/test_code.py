"""The hash of code follows what is computed, not how it is written."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline_steps.study.code import code_hash, modules_behind, normal_form, read_module

ROOT = Path(__file__).parents[2]
STEPS = [path.stem for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
HASH = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("code_of", "pipeline_steps/study/code.py")
module = importlib.util.module_from_spec(spec)
sys.modules["code_of"] = module
spec.loader.exec_module(module)
print(json.dumps({root: module.code_hash([root]) for root in sys.argv[1:]}))
"""
ROOTS = ["finetune:run", "features:run", "score:run", "report:run", "gather:run"]


def form(source: str) -> str:
    return normal_form(ast.parse(source))


def hashes(root: Path, *roots: str, python: str = sys.executable) -> dict[str, str]:
    """Hashes of roots as a project in another folder sees them."""
    run = subprocess.run(
        [python, "-c", HASH, *roots], cwd=root, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "pipeline_steps", tmp_path / "pipeline_steps")
    return tmp_path


SOURCE = '''
def double(x: int) -> int:
    """Twice x."""
    if x < 0:
        raise ValueError(f"{x} is below zero")
    log.info("doubling %s", x)
    each(x, lambda: log.info("done with %s", said(x)))
    return 2 * x
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    return", "    # other words\n    return"),
        ("2 * x", "(2 *\n        x)"),
        ("Twice x.", "Two times x."),
        ("x: int) -> int", "x: float) -> float"),
        ("is below zero", "has a minus"),
        ("doubling %s", "twice %s"),
        ('"done with %s", said(x)', '"did it"'),
    ],
)
def test_how_it_is_written_and_what_it_says_do_not_count(before: str, after: str) -> None:
    assert before in SOURCE
    assert form(SOURCE.replace(before, after)) == form(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("2 * x", "3 * x"), ("x < 0", "x <= 0"), ("ValueError", "TypeError"), ("(x: int", "(x=1")],
)
def test_what_it_does_counts(before: str, after: str) -> None:
    changed = SOURCE.replace(before, after).replace("(x=1)", "(x=1)")
    assert form(changed.replace("(x=1) ->", "(x=1) ->")) != form(SOURCE)


def test_definitions_are_followed_across_modules_and_into_functions() -> None:
    behind = modules_behind(["recognise:run"])
    assert {"recognise", "recognition.training", "recognition.margins", "seeds"} <= set(behind)
    assert not any(name.startswith(("diffusion.", "evidence.")) for name in behind)
    assert "metrics.prdc" in modules_behind(["score:run"])


def test_the_running_process_and_the_study_count_nowhere() -> None:
    for root in ROOTS:
        outside = [name for name in modules_behind([root]) if name.startswith(("runtime", "study"))]
        assert outside == []


def test_an_unknown_root_is_an_error() -> None:
    with pytest.raises(KeyError, match="no definition"):
        code_hash(["finetune:walk"])


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        path = project / "pipeline_steps" / name
        path.write_text(path.read_text("utf-8") + text, "utf-8")

    return change


def test_an_edit_counts_for_those_that_stand_on_it_alone(project: Path) -> None:
    before = hashes(project, *ROOTS)
    prdc = project / "pipeline_steps/metrics/prdc.py"
    text = prdc.read_text("utf-8")
    assert "def precision_recall(" in text
    append("metrics/prdc.py", "\n\ndef unused(x):\n    return x\n\n\n# A comment.\n")(project)
    assert hashes(project, *ROOTS) == before
    prdc.write_text(text.replace("k: int = 3", "k: int = 4"), "utf-8")
    after = hashes(project, *ROOTS)
    changed = {root for root in ROOTS if after[root] != before[root]}
    assert changed == {"score:run", "report:run"}  # a metric's entry says how it is shown, too


DETECTING = {"align", "embed", "features"}  # the landmark pose searches what a set of others lacks


@pytest.mark.parametrize(
    ("module", "line", "edited", "caches"),
    [
        ("faces/mtcnn.py", "PYRAMID_FACTOR = 0.709", "PYRAMID_FACTOR = 0.5", DETECTING),
        ("faces/alignment.py", "TEMPLATE_SIZE = 112", "TEMPLATE_SIZE = 111", {"align", "features"}),
        ("faces/recogniser.py", ".sub(0.5)", ".sub(0.4)", {"embed", "features", "recognise"}),
        ("recognition/margins.py", "return ", "return 2 * ", {"recognise"}),
        ("recognition/augmentation.py", "MAX_SHEAR = 0.3", "MAX_SHEAR = 0.4", {"recognise"}),
    ],
)
def test_what_is_kept_is_kept_under_the_code_that_made_it(
    project: Path, module: str, line: str, edited: str, caches: set[str]
) -> None:
    roots = [f"{step}:run" for step in ("align", "embed", "features", "recognise")]
    before = hashes(project, *roots)
    path = project / "pipeline_steps" / module
    text = path.read_text("utf-8")
    assert line in text
    path.write_text(text.replace(line, edited), "utf-8")
    after = hashes(project, *roots)
    assert {root.partition(":")[0] for root in roots if after[root] != before[root]} == caches


def test_templates_count_for_the_page_that_they_make(project: Path) -> None:
    before = hashes(project, *ROOTS)
    for template in (project / "pipeline_steps/evidence/report").glob("*.j2"):
        template.write_text(template.read_text("utf-8") + "\n<hr>\n", "utf-8")
    after = hashes(project, *ROOTS)
    assert {root for root in ROOTS if after[root] != before[root]} == {"report:run"}


def test_a_new_method_or_a_change_of_one_concerns_no_other(project: Path) -> None:
    methods = project / "pipeline_steps/diffusion/methods"
    roots = [f"diffusion.methods.{name}:METHOD" for name in ("dreambooth", "idbooth")]
    before = hashes(project, *roots)
    shutil.copy(methods / "portraitbooth.py", methods / "squaredbooth.py")
    assert hashes(project, *roots) == before
    idbooth = methods / "idbooth.py"
    idbooth.write_text(idbooth.read_text("utf-8").replace('{"margin"}', "set()"), "utf-8")
    after = hashes(project, *roots)
    assert [after[root] == before[root] for root in roots] == [True, False]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_all_pythons_of_the_project_agree(version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip(f"Python {version} is not on this machine")
    assert hashes(ROOT, *ROOTS, python=python) == hashes(ROOT, *ROOTS)


def test_the_package_imports_its_own_by_from(tmp_path: Path) -> None:
    """What :func:`code_hash` can follow."""
    for path in (ROOT / "pipeline_steps").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith("pipeline_steps") for name in names), path
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_modules_are_read_once() -> None:
    assert read_module("gather") is read_module("gather")
