"""A run is refused before its first job where weights or licences are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.weights import FOLDER_VARIABLE
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.study import read_configs
from tests.workflow.small_study import bare_environment, quick

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config" / "paper_sd21.yaml"


def test_a_run_without_weights_stops_before_its_first_job_and_a_dry_run_does_not(
    tmp_path: Path,
) -> None:
    for path in make_plan(read_configs([PAPER]), "").put_in:
        write_text(tmp_path / path, "")
    program = Path(sys.executable).with_name("snakemake")
    place = ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--configfile", PAPER]
    environment = bare_environment() | quick() | {FOLDER_VARIABLE: str(tmp_path / "weights")}
    target = "results/paper_sd21/prior/sd21/manifest.parquet"
    outputs = {}
    for flags in ([], ["-n"]):
        result = subprocess.run(
            [program, "--cores", "1", target, *flags, *place],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        outputs[result.returncode] = result.stdout + result.stderr
    assert outputs.keys() == {0, 1}
    assert "cannot start. Missing (" in outputs[1]
    assert "weights sd21" in outputs[1]
    assert "weights crfiqa" not in outputs[1]  # no job of this run reads them
    assert not (tmp_path / "results").exists()
