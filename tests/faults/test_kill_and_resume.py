"""Real trainings, killed by real signals at random moments, end as an undisturbed one."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_killed_trainings_resume_bit_for_bit_and_train_nobody_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kill_and_resume

    study = kill_and_resume.Study(tmp_path, steps=8)
    killed = study.disturb(0.5, signal.SIGKILL)
    asked = study.disturb(0.8, signal.SIGUSR1)
    assert killed.exit_status in (0, -signal.SIGKILL)
    assert asked.exit_status in (0, 75)
    for trial in (killed, asked):
        assert trial.equal and trial.kept and trial.clean, trial
    sys.modules.pop("kill_and_resume")
