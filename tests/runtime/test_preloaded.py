"""A program that is a fork of the process with the libraries runs and ends as one that is not."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.small_study import bare_environment, quick

PROGRAM = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"heard\\n"))
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.stdin.read(), sys.path[0], flush=True)
print(__name__, __spec__.name, signal.getsignal(signal.SIGUSR2), file=sys.stderr)
"""
ENDS = {
    "by itself": "",
    "a status": "sys.exit(75)",
    "a sentence": "sys.exit('wrong')",
    "a defect": "raise ValueError('wrong')",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "no memory": "os.kill(os.getpid(), signal.SIGKILL)",
}
WAIT = "print('there', flush=True)\nwhile True: time.sleep(0.01)"


def start(folder: Path, end: str, *, forked: bool = True) -> subprocess.Popen[str]:
    (folder / "pipeline_steps").mkdir(exist_ok=True)
    (folder / "pipeline_steps" / "program.py").write_text(PROGRAM + end)
    environment = bare_environment() | (quick() if forked else {}) | {"WORD": "é\n"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline_steps.program", "a b", "--c"],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    )


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_it_ends_as_without_the_server(tmp_path: Path, end: str) -> None:
    ways = []
    for forked in (True, False):
        job = start(tmp_path, end, forked=forked)
        output, errors = job.communicate("put in")
        lines = errors.splitlines()
        ways.append((job.returncode, output, lines[0], lines[-1]))
    assert ways[0] == ways[1]
    assert "put in" in ways[0][1]


def waiting(folder: Path) -> subprocess.Popen[str]:
    job = start(folder, WAIT)
    assert job.stdin and job.stdout
    job.stdin.close()
    while job.stdout.readline() != "there\n":
        assert job.poll() is None
    return job


def test_signals_are_passed_on(tmp_path: Path) -> None:
    job = waiting(tmp_path)
    job.send_signal(signal.SIGUSR2)  # ignored
    job.send_signal(signal.SIGUSR1)
    assert job.stdout and job.stdout.readline() == "heard\n"
    job.terminate()
    assert job.wait() == -signal.SIGTERM


def test_it_dies_with_the_process_that_stands_for_it(tmp_path: Path) -> None:
    job = waiting(tmp_path)
    job.kill()
    job.wait()
    with (tmp_path / "lock").open() as lock:
        for _ in range(500):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)
    raise AssertionError("it lives on")


def test_a_command_is_run_with_its_status_and_without_a_server_everything_runs_itself(
    tmp_path: Path,
) -> None:
    (tmp_path / "pipeline_steps").mkdir()
    (tmp_path / "pipeline_steps" / "program.py").write_text(
        "import os, sys; print('torch' in sys.modules, flush=True); sys.exit(7)"
    )
    program = [sys.executable, "-m", "pipeline_steps.program"]
    served = [sys.executable, "-m", "pipeline_steps.runtime.preloaded"]
    gone = {"FORK_SERVER": str(tmp_path / "gone")}
    for command, further, loaded in (
        ([*served, "sh", "-c", f"cd {tmp_path}; exec {' '.join(program)}"], {}, "True"),
        (program, quick(), "True"),
        (program, quick() | gone, "False"),
        (program, quick() | {"FORK_SERVER_PYTHON": "/another"}, "False"),
        (program, quick() | {"OMP_NUM_THREADS": "2"}, "False"),
    ):
        job = subprocess.run(
            command,
            cwd=None if command[:3] == served else tmp_path,
            env={**bare_environment(), "OMP_NUM_THREADS": "1", **further},
            capture_output=True,
            text=True,
        )
        assert (job.returncode, job.stdout.strip()) == (7, loaded), job.stderr
