"""What runs again after which change: exactly what depends on it, down to single identities."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.reruns import matrix
from pipeline_steps.study.settings.study import read_configs
from tests.workflow.small_study import CONFIG, snakemake, write_config

LORAS = "results/demo/loras/demo/idbooth"
FINETUNED = f"{LORAS}/shares/0-of-2.json", f"{LORAS}/shares/1-of-2.json"


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study that a test may change."""
    folder = tmp_path / "project"
    shutil.copytree(finished_study, folder, symlinks=True)
    return folder


def planned(study: Path, *arguments: str) -> set[str]:
    """Rules that would run, frozen configurations apart."""
    output = snakemake(study, "--dry-run", *arguments)
    if "Nothing to be done" in output:
        return set()
    stats = output.split("Job stats:")[1].split("\n\n")[0]
    rules = set(re.findall(r"^(\w+) +\d+$", stats, re.MULTILINE))
    return rules - {"total", "all", "freeze"}


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), "utf-8")


def changed_setting(**changes: Any) -> Callable[[Path], None]:
    return lambda study: write_config(study, {k.replace("__", "."): v for k, v in changes.items()})


def changed_prompt_word(study: Path) -> None:
    edit(study / "config/prompts/base.yaml", "close-up", "near")


def commented_and_reordered(study: Path) -> None:
    lines = (study / CONFIG).read_text("utf-8")
    (study / CONFIG).write_text(f"# A thought.\n\n{lines}\n# Another one.\n", "utf-8")


def touched(study: Path) -> None:
    for path in [study / CONFIG, *study.glob("config/**/*.yaml"), *study.glob("**/*.py")]:
        os.utime(path)
    for path in study.glob("results/demo/config/**/*.json"):
        os.utime(path)


def changed_code_of_the_running_process(study: Path) -> None:
    for module in ("runtime/logs", "runtime/lease", "study/store", "study/command"):
        path = study / f"pipeline_steps/{module}.py"
        path.write_text(f"{path.read_text('utf-8')}\n\nUNUSED = 1\n", "utf-8")


def changed_words_in_every_module(study: Path) -> None:
    for path in (study / "pipeline_steps").rglob("*.py"):
        text = path.read_text("utf-8").replace('"""', '"""In short: ', 1)
        path.write_text(f"{text}\n# A comment.\n", "utf-8")


def changed_code_of_a_metric(study: Path) -> None:
    edit(study / "pipeline_steps/metrics/prdc.py", "k: int = 3", "k: int = 4")


def changed_nothing_that_counts(study: Path) -> None:
    for change in (commented_and_reordered, touched, changed_code_of_the_running_process):
        change(study)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a word of prompt set base": changed_prompt_word,
    "setting finetune.learning_rate": changed_setting(finetune__learning_rate=0.002),
    "setting score.quality.k": changed_setting(score__quality__k=4),
    "setting figures.colours": changed_setting(figures__colours={"idbooth": "#123456"}),
    "setting tables.intervals": changed_setting(tables__intervals=True),
    "times of files of any size": changed_nothing_that_counts,
    "comments, docstrings, annotations and texts of messages": changed_words_in_every_module,
    "code metrics.prdc": changed_code_of_a_metric,
}
"""Rows of the matrix, each with a change of its kind."""


@pytest.fixture(scope="module")
def rows(finished_study: Path) -> dict[str, list[str] | None]:
    """The matrix of the finished study."""
    config = read_configs([finished_study / CONFIG])
    return matrix(make_plan(config, ""), config)


@pytest.mark.parametrize("row", CHANGES)
def test_what_the_matrix_says_runs_again_and_nothing_else(
    study: Path, rows: dict[str, list[str] | None], row: str
) -> None:
    CHANGES[row](study)
    assert planned(study) == {*(rows[row] or ())}


def test_cores_and_cards_change_nothing(study: Path) -> None:
    assert planned(study, "--cores", "1", "--resources", "gpu=3", "mem_mb=9000") == set()


def weights(study: Path) -> dict[str, int]:
    """Identity to the time its weights were written."""
    found = (study / LORAS).glob("*/pytorch_lora_weights.safetensors")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def test_other_shares_train_and_sample_nobody_again(study: Path) -> None:
    images = sorted((study / "results/demo/samples").glob("**/*.png"))
    before = weights(study), [path.stat().st_mtime_ns for path in images]
    write_config(study, {"shares": 1})
    folder = "results/demo/samples/demo"
    snakemake(study, *(f"{folder}/{of}/base/manifest.parquet" for of in ("untuned", "idbooth")))
    assert (weights(study), [path.stat().st_mtime_ns for path in images]) == before


def test_an_added_photograph_trains_its_identity_and_an_added_subject_itself(study: Path) -> None:
    before = weights(study)
    archive = next(study.glob("data/demo_world/tfd/TD_RGB_A_Set2.zip"))
    with zipfile.ZipFile(archive, "a") as photographs:
        folder = photographs.namelist()[0].rpartition("/")[0]
        darker = Image.open(io.BytesIO(photographs.read(f"{folder}/TD_RGB_A_1_4.jpg")))
        stream = io.BytesIO()
        darker.point(lambda value: value * 0.9).save(stream, "JPEG")
        photographs.writestr(f"{folder}/TD_RGB_A_9_4.jpg", stream.getvalue())
    changed = f"ID_{folder.rsplit('/', 1)[1]}"
    snakemake(study, *FINETUNED)
    after = weights(study)
    assert {identity for identity in before if after[identity] != before[identity]} == {changed}

    before = after
    write_config(study, {"render_demo_world.participants": 5})
    snakemake(study, *FINETUNED)
    after = weights(study)
    # Rendered anew, the archives hold the photographs as they were before one was added.
    assert {identity for identity in before if after[identity] != before[identity]} == {changed}
    assert set(after) - set(before) == {"ID_5"}
