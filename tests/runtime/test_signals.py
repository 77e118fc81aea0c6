"""A real process is asked to stop by real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline_steps.runtime.signals import SIGNALS, stop_requested

# Works in small pieces until asked; then says what asked it, after a moment as saving would take.
WORKER = """
import sys, time
from pipeline_steps.study.command import run_main
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.runtime.signals import stop_requested

def main():
    with stop_requested() as stop:
        print("ready", flush=True)
        while not stop:
            time.sleep(0.01)
        time.sleep(0.3)
    raise Interrupted(f"saved at {stop.name}")

sys.exit(run_main(main))
"""


@pytest.fixture
def worker() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_work_at_a_safe_point(
    worker: subprocess.Popen[str], number: signal.Signals
) -> None:
    worker.send_signal(number)
    _, errors = worker.communicate(timeout=10)
    assert worker.returncode == 75
    assert errors == f"stopped: saved at {number.name}\n"


def test_the_same_request_twice_does_not_disturb_the_saving(worker: subprocess.Popen[str]) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        worker.send_signal(number)
        time.sleep(0.05)
    _, errors = worker.communicate(timeout=10)
    assert worker.returncode == 75
    assert errors == "stopped: saved at SIGUSR1\n"


def test_a_second_ctrl_c_interrupts_at_once(worker: subprocess.Popen[str]) -> None:
    worker.send_signal(signal.SIGINT)
    time.sleep(0.1)
    worker.send_signal(signal.SIGINT)
    _, errors = worker.communicate(timeout=10)
    assert worker.returncode not in (0, 75)
    assert "KeyboardInterrupt" in errors


def test_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_threads_may_ask_and_hear_no() -> None:
    heard: list[bool] = []

    def work() -> None:
        with stop_requested() as stop:
            heard.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]
