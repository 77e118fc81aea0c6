"""Rules have one shape, and the two profiles say what they must."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
ORDER = [
    "input",
    "output",
    "log",
    "benchmark",
    "wildcard_constraints",
    "conda",
    "threads",
    "resources",
    "params",
    "message",
    "shell",
]


def rules() -> list[tuple[str, str]]:
    found = []
    for path in RULES:
        for block in re.split(r"^rule ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            name, _, body = block.partition(":\n")
            found.append((name, body))
    return found


@pytest.mark.parametrize(("name", "body"), rules(), ids=[name for name, _ in rules()])
def test_a_rule_has_the_one_shape(name: str, body: str) -> None:
    directives = re.findall(r"^    (\w+):", body, re.MULTILINE)
    if name == "freeze":
        return
    required = set(ORDER) - {"params", "wildcard_constraints"}
    assert required <= set(directives)
    assert directives == [directive for directive in ORDER if directive in directives]
    for resource in ("gpu", "mem_mb", "runtime"):
        assert re.search(rf"^        {resource}=", body, re.MULTILINE)
    step = re.search(r"python -m pipeline_steps\.(\w+)", body)
    assert step is not None
    assert (ROOT / "pipeline_steps" / f"{step[1]}.py").is_file()


def test_rules_take_paths_of_results_from_the_ledger() -> None:
    for path in (path for path in RULES if path.stem != "export"):  # a folder, of any shape
        assert not re.search(r'["<](results|\{S\})[>/]', path.read_text()), path


def test_workflow_files_stay_small() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 60
    for path in RULES:
        limit = 150 if path.stem == "common" else 200
        assert len(path.read_text().splitlines()) < limit, path


def test_profiles_say_what_they_must() -> None:
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("default", "slurm")
    )
    assert default["resources"] == ["gpu=1"]
    assert "cores" not in slurm
    assert slurm["jobs"] >= 1
    assert slurm["slurm-status-command"] == "squeue"
    assert {"slurm_account", "slurm_partition", "mem_mb", "runtime"} <= set(
        slurm["default-resources"]
    )


def test_no_rule_retries_by_itself() -> None:
    assert not any("retries" in path.read_text() for path in RULES)
