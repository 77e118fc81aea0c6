"""Where a number comes from, in a finished study."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline_steps.io.hashes import sha256_file
from tests.workflow.small_study import bare_environment, quick

TABLE = "results/demo/tables/identity.csv"


def explain(study: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline_steps.explain", *arguments],
        cwd=study,
        env=bare_environment() | quick(),
        capture_output=True,
        text=True,
        check=False,
    )


def paths_to_leaves(node: dict[str, Any]) -> list[list[dict[str, Any]]]:
    below = [path for part in node["from"] for path in paths_to_leaves(part)]
    return [[node, *path] for path in below] or [[node]]


def row_of(study: Path, method: str, versus: str) -> int:
    frame = pd.read_csv(study / TABLE)
    return int(frame.index[(frame["method"] == method) & (frame["versus"] == versus)][0])


def test_a_number_leads_to_photographs_by_true_hashes(finished_study: Path) -> None:
    row = row_of(finished_study, "idbooth", "real")
    told = explain(finished_study, TABLE, "--row", str(row), "--json")
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr
    tree = json.loads(told.stdout)
    assert tree["row"]["method"] == "idbooth"
    assert tree["config"] == "results/demo/config/tables.json"
    for path in paths_to_leaves(tree):
        for node in path:
            file = finished_study / node["what"]
            if file.is_file():
                assert node["sha256"] == sha256_file(file), node["what"]
    kinds = {
        tuple(Path(n["what"]).parts[2] for n in path if n["what"].startswith("results/"))
        for path in paths_to_leaves(tree)
    }
    generated = ("tables", "scores", "features", "aligned", "samples")
    assert generated in kinds
    assert ("tables", "scores", "features", "loras", "dataset") in kinds
    assert ("tables", "scores", "features", "aligned", "dataset") in kinds
    photographs = {n["photograph"] for p in paths_to_leaves(tree) for n in p if "photograph" in n}
    held = set()
    for archive in (finished_study / "data/demo_world/tfd").glob("*.zip"):
        with zipfile.ZipFile(archive) as names:
            held |= {f"{archive.name}/{name}" for name in names.namelist()}
    assert photographs
    assert photographs <= held


@pytest.mark.parametrize(
    "file",
    [
        "results/demo/figures/overview.svg",
        "results/demo/samples/demo/idbooth/base/ID_1/0.png",
        "results/demo/aligned/real/ID_1/TD_RGB_A_1_4.png",
        "results/demo/loras/demo/idbooth/ID_1",
        "results/demo/recognition/demo-idbooth-base/seed0/verification.csv",
    ],
)
def test_other_results_are_explained(finished_study: Path, file: str) -> None:
    told = explain(finished_study, file)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr
    assert "Every link holds." in told.stdout
    assert hashlib.sha256(b"").hexdigest() not in told.stdout
    assert "photograph: TD_RGB_A_Set" in told.stdout


def test_a_link_that_does_not_hold_is_named(finished_study: Path, tmp_path: Path) -> None:
    study = tmp_path / "project"
    shutil.copytree(finished_study, study, symlinks=True)
    face = study / "results/demo/samples/demo/idbooth/base/ID_1/0.png"
    face.write_bytes((face.parent / "1.png").read_bytes())
    told = explain(study, TABLE, "--row", str(row_of(study, "idbooth", "real")))
    assert told.returncode == 1
    assert f"{face.relative_to(study)} is not the image that its manifest lists" in told.stdout


def test_what_cannot_be_explained_is_said(finished_study: Path) -> None:
    for arguments, words in (
        ((TABLE, "--row", "99"), "has the rows 0 to"),
        (("results/demo/config/align.json",), "nothing is known about files such as"),
        (("small.yaml",), "lies in no study's results"),
    ):
        told = explain(finished_study, *arguments)
        assert told.returncode == 2
        assert words in told.stderr
