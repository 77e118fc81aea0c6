"""What runs again after which change, as the matrix says it, and what changed, in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.reruns import as_text, differences, matrix, run_again
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[2]
PAGES = {"report", "provenance"}
TABLES = {"tables", *PAGES}
NEVER = {"render_demo_world", "prepare", "embed", "prior", "align_in_the_wild"}
GRAPH = {
    "0": ("all", ()),
    "1": ("config/a.json", ("2",)),
    "2": ("make_a", ("4",)),
    "3": ("make_b", ("4",)),
    "4": ("page", ("0",)),
}


def test_what_changed_and_all_that_follows_runs_again() -> None:
    assert run_again(GRAPH, ["config/a.json"]) == ["make_a", "page"]
    assert run_again(GRAPH, ["make_b"]) == ["make_b", "page"]
    assert run_again(GRAPH, []) == []


def test_a_change_is_told_by_its_key_with_both_values() -> None:
    before = {"settings": {"margin": 1.0, "gate": None}, "code": "a", "seed": 0}
    now = {"settings": {"margin": 0.5, "gate": {"k": 1}}, "code": "b", "seed": 0}
    assert set(differences(before, now, "finetune")) == {
        "finetune.margin: 1.0 -> 0.5",
        "finetune.gate: None -> {'k': 1}",
        "code of finetune",
    }


@pytest.mark.slow
def test_the_matrix_says_what_runs_again_for_every_change_and_nothing_else() -> None:
    config = read_configs([ROOT / "config" / "demo.yaml"])
    rows = matrix(make_plan(config, ""), config)
    again = {row: set(rules) for row, rules in rows.items() if rules is not None}
    assert again["setting figures.dpi"] == {"figures", *PAGES}
    assert again["setting score.quality.k"] == {"score", "score_references", "figures", *TABLES}
    assert again["setting verify.folds"] == {"verify", *TABLES}
    assert again["licence texts"] == PAGES
    for trained in ("setting finetune.margin", "code diffusion.training.losses"):
        assert {"finetune", "sample", "align", "features", "score", *TABLES} <= again[trained]
        assert not NEVER & again[trained]
    assert "finetune" not in again["weights demo_quality"] | again["code metrics.prdc"]
    assert {"prior", "finetune", "embed"} <= again["weights demo_recogniser"]
    assert again["content of benchmarks"] == {"verify", *TABLES}
    assert "prepare" in again["content of photographs"]
    assert rows["setting shares"] is None
    free = ("comments", "versions", "times", "place", "cores", "code runtime")
    assert not any(rules for row, rules in again.items() if row.startswith(free))
    assert len([row for row in rows if row.startswith("setting ")]) > 100
    assert "setting figures.dpi" in as_text(rows)


SNAKEFILE = """
from types import SimpleNamespace
from pipeline_steps.study import reruns, snapshot
PLAN = SimpleNamespace(put_in=["people.csv"], withdrawn=[])
if workflow.is_main_process:
    snapshot.write_listings(PLAN)
    reruns.compare_contents(PLAN)
rule read:
    input: "people.csv"
    output: "read.txt"
    shell: "cp {input} {output}; test ! -e next.csv || mv next.csv {input}"
"""


def test_a_file_replaced_by_an_older_one_or_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    def run() -> str:
        command = [Path(sys.executable).with_name("snakemake"), "--cores", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    table, result = tmp_path / "people.csv", tmp_path / "read.txt"
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    table.write_text("first")
    (tmp_path / "next.csv").write_text("second")
    run()
    assert (result.read_text(), table.read_text()) == ("first", "second")
    run()
    assert result.read_text() == "second"
    assert "Nothing to be done" in run()
    table.write_text("older")
    os.utime(table, (1e9, 1e9))
    run()
    assert result.read_text() == "older"
    assert "Nothing to be done" in run()
    shutil.rmtree(tmp_path / ".snakemake")  # what was noted is gone: times decide
    assert "Nothing to be done" in run()
