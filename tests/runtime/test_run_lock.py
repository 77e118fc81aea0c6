"""Locks of runs and steps, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_steps.runtime import run_lock
from pipeline_steps.runtime.errors import StepError

RESULTS = "results/demo"
# A run that says when it holds the lock, and then works until it is killed or told to end.
RUN = f"""
import os, sys
from pipeline_steps.runtime.run_lock import claim_run, VARIABLE
claim_run({RESULTS!r})
print(os.environ[VARIABLE], flush=True)
sys.stdin.read()
"""
PLAN = """
import sys
from pipeline_steps.runtime.run_lock import clear_stale_locks
clear_stale_locks(sys.argv[1])
print("plans", flush=True)
sys.stdin.read()
"""
STEP = """
import sys
from pathlib import Path
from pipeline_steps.study.command import run_main
def main():
    print("works", flush=True)
    sys.stdin.read()
    Path("worked").touch()
    return 0
raise SystemExit(run_main(main))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(run_lock, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "POLL_SECONDS", 0.05)
    monkeypatch.delenv(run_lock.VARIABLE, raising=False)
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    yield tmp_path
    run_lock.release_run()
    os.environ.pop(run_lock.VARIABLE, None)


def start(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(job: subprocess.Popen[str]) -> str:
    assert job.stdout is not None
    return job.stdout.readline().strip()


def kill(job: subprocess.Popen[str]) -> None:
    job.send_signal(signal.SIGKILL)
    job.communicate()


def note(number: int, *names: str) -> Path:
    path = Path(f".snakemake/locks/{number}.output.lock")
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_locks_of_a_killed_run_are_removed() -> None:
    left = note(0, "data/x.zip", f"{RESULTS}/a")
    run = start(RUN)
    first_line(run)
    assert not run_lock.clear_stale_locks(RESULTS)  # the run lives
    assert left.exists()
    kill(run)
    assert run_lock.clear_stale_locks(RESULTS)
    assert not left.exists()


def test_locks_of_other_studies_are_removed_once_they_neither_plan_nor_run_nor_have_steps() -> None:
    planning = start(PLAN, RESULTS)
    assert first_line(planning) == "plans"
    other, of_none = note(0, "data/world.zip", f"{RESULTS}/a"), note(1, "data/world.zip")
    dead, empty = note(2, "results/demo2/a"), note(3)
    for _ in range(2):  # the same process clears as often as it likes
        assert run_lock.clear_stale_locks("results/mine")
        assert other.exists() and of_none.exists()
    kill(planning)
    run = start(RUN)
    step = start(STEP, **{run_lock.VARIABLE: first_line(run)})
    assert first_line(step) == "works"
    for living in (run, step):
        run_lock.clear_stale_locks("results/mine")
        assert other.exists() and of_none.exists()
        kill(living)
    run_lock.clear_stale_locks("results/mine")
    assert not other.exists() and not of_none.exists() and empty.exists()
    assert not dead.exists()


def test_a_second_run_is_refused_and_told_of_the_first() -> None:
    run = start(RUN)
    first_line(run)
    with pytest.raises(StepError, match=rf"results/demo .*process {run.pid} on .*wait"):
        run_lock.claim_run(RESULTS)
    run_lock.claim_run("results/demo2")  # another study
    kill(run)
    run_lock.claim_run(RESULTS)


def test_a_run_waits_for_the_steps_of_a_killed_one_and_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step ends only when the new run waits: one that did not would be there before it."""
    run = start(RUN)
    step = start(STEP, **{run_lock.VARIABLE: first_line(run)})
    assert first_line(step) == "works"
    kill(run)
    told: list[str] = []
    sleep = time.sleep

    def let_the_step_end(seconds: float) -> None:
        assert told and step.stdin is not None
        step.stdin.close()
        sleep(seconds)

    monkeypatch.setattr(run_lock.time, "sleep", let_the_step_end)
    run_lock.claim_run(RESULTS, tell=told.append)
    assert Path("worked").is_file()
    assert step.wait(timeout=60) == 0
    assert len(told) == 1 and f"process {step.pid}" in told[0] and RESULTS in told[0]


def test_a_step_whose_run_was_replaced_does_not_begin() -> None:
    run = start(RUN)
    token = first_line(run)
    kill(run)
    run_lock.claim_run(RESULTS)
    step = start(STEP, **{run_lock.VARIABLE: token})
    output, errors = step.communicate()
    assert step.returncode == 75 and output == ""
    assert "stopped: this step's run is gone and a newer one has taken its place" in errors


def test_a_step_by_hand_needs_no_run() -> None:
    step = start(STEP)
    assert step.communicate()[0] == "works\n" and step.returncode == 0


def test_what_a_killed_run_left_half_written_goes_and_nothing_else(folder: Path) -> None:
    results = folder / RESULTS
    (results / "model").mkdir(parents=True)
    kept = [results / "model/.clip.safetensors", results / "a.0123abcd.png"]
    half = [results / ".a.0123abcd.png", results / "model/.b.0123abcd"]
    for path in [*kept, *half]:
        path.write_text("x")
    (results / ".folder.89abcdef").mkdir()
    run_lock.claim_run(RESULTS)
    run_lock.release_run()
    run_lock.claim_run(RESULTS)
    assert all(path.exists() for path in half)  # no run has crashed
    run_lock.release_run()
    run = start(RUN)
    first_line(run)
    kill(run)
    run_lock.claim_run(RESULTS)
    assert sorted(p for p in results.rglob("*") if p.is_file()) == sorted(kept)
    assert not (results / ".folder.89abcdef").exists()
