"""The workflow through a real SLURM: results, cards, and configuration while jobs wait."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cluster.slurm import CPU, run, slurm, wait_until, write_profile
from tests.workflow.small_study import start, write_config

LORAS = "results/demo/loras/demo/idbooth"
SHARES = [f"{LORAS}/shares/{share}-of-2.json" for share in range(2)]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile(tmp_path_factory.mktemp("profile"), retries=0)


# Made through SLURM: all that follows from these, which are those of the finished study, and one
# set of features, so that each kind of job is submitted but for what comes before training.
KEPT = (
    "config",
    "dataset",
    "prior",
    "features/real",
    "features/wild",
    "aligned/real",
    "aligned/wild",
)
AGAIN = "features/real/demo_quality.safetensors"


@pytest.fixture(scope="module")
def study(finished_study: Path, tmp_path_factory: pytest.TempPathFactory, profile: Path) -> Path:
    """A project as that of the finished study, whose study went through SLURM from training on."""
    folder = tmp_path_factory.mktemp("cluster") / "project"
    shutil.copytree(finished_study, folder, symlinks=True)
    results = folder / "results/demo"
    shutil.move(results, folder / "before")
    for name in KEPT:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "before" / name, results / name)
    shutil.rmtree(folder / "before")
    (results / AGAIN).unlink()
    output = run(folder, profile)
    assert not re.search(r"^(prepare|prior|render_demo_world) ", output, re.MULTILINE)
    return folder


def test_tables_are_those_of_a_local_run_bit_for_bit(study: Path, finished_study: Path) -> None:
    tables = sorted((finished_study / "results/demo/tables").glob("*.csv"))
    assert len(tables) >= 4
    for table in tables:
        assert (study / table.relative_to(finished_study)).read_bytes() == table.read_bytes()
    weights = sorted((finished_study / LORAS).glob("*/pytorch_lora_weights.safetensors"))
    assert len(weights) == 4
    for path in weights:
        assert (study / path.relative_to(finished_study)).read_bytes() == path.read_bytes()


def test_jobs_that_run_side_by_side_hold_different_cards(study: Path) -> None:
    log = study / "results/demo/logs/finetune/demo/idbooth"
    cards = [re.findall(r"GPU (\S+)", (log / f"{k}-of-2.log").read_text()) for k in range(2)]
    (first,), (second,) = cards
    assert {first, second} <= set("0123")
    assert first != second


def test_jobs_use_the_configuration_they_were_submitted_with(study: Path, profile: Path) -> None:
    def trained() -> list[float]:
        records = sorted((study / LORAS).glob("*/training.json"))
        return [json.loads(r.read_text())["settings"]["learning_rate"] for r in records]

    write_config(study, {"finetune.learning_rate": 0.002})
    slurm("scontrol", "update", "PartitionName=test", "State=DOWN")
    try:
        job = start(study, *SHARES, "--workflow-profile", str(profile), **CPU)
        wait_until(lambda: len(slurm("squeue", "--noheader").splitlines()) == 2)
        write_config(study, {"finetune.learning_rate": 0.001})
    finally:
        slurm("scontrol", "update", "PartitionName=test", "State=UP")
    output, _ = job.communicate()
    assert job.returncode == 0, output[-6000:]
    assert trained() == [0.002] * 4
    plan = run(study, profile, *SHARES, "--dry-run")
    assert re.search(r"finetune\s+2\b", plan)
    run(study, profile, *SHARES)
    assert trained() == [0.001] * 4
