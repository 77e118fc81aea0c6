"""A workflow that is killed at random moments ends as an undisturbed one, by the same command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_killed_workflow_is_run_again_and_gives_the_same_weights_and_images(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import faults

    study = faults.Study(
        finished_study,
        tmp_path,
        remade=("loras/demo/idbooth", "samples/demo/idbooth"),
        targets=[faults.SAMPLES],
    )
    trial = study.disturb(0, seconds=6, most=2, kinds=("group", "snakemake"))
    assert trial.not_whole == [] and trial.stuck == []
    assert trial.equal, trial.missing
    assert trial.runs == len(trial.kills) + 1  # no other command, and no run in vain
    sys.modules.pop("faults")
