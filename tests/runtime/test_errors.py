from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.study.command import run_main

ROOT = Path(__file__).parents[2]


def test_a_step_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise StepError("ID_7 has no usable image in\n  data/tfd: add some")

    assert run_main(main) == 2
    assert capsys.readouterr().err == "error: ID_7 has no usable image in data/tfd: add some\n"


def test_an_interruption_is_one_line_and_the_status_that_means_try_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        raise Interrupted("saved at step 7")

    assert run_main(main) == 75
    assert capsys.readouterr().err == "stopped: saved at step 7\n"


def test_success_passes_through() -> None:
    assert run_main(lambda: 0) == 0


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_names_the_file(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise OSError(number, os.strerror(number), str(tmp_path / "log.txt"))

    assert run_main(main) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'log.txt'} cannot be written")
    assert "free some space and run again" in error and error.count("\n") == 1


def test_a_file_that_is_not_there_is_no_disk_error() -> None:
    def main() -> int:
        return len(Path("/nowhere/x").read_bytes())

    with pytest.raises(FileNotFoundError):
        run_main(main)


def test_a_sentence_for_a_disk_so_full_that_it_cannot_be_written() -> None:
    """The device /dev/full refuses every byte; the exit status still tells."""
    code = (
        "from pipeline_steps.runtime.errors import StepError\n"
        "from pipeline_steps.study.command import run_main\n"
        "def main():\n"
        "    raise StepError('wrong')\n"
        "raise SystemExit(run_main(main))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full, cwd=ROOT, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "--at-once"),
        ("CUDA error: an illegal memory access was encountered\nmore", "CUDA_VISIBLE_DEVICES"),
        (
            "[alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
            "mem_mb",
        ),
    ],
)
def test_what_pytorch_says_of_card_and_memory_is_one_line(
    text: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise RuntimeError(text)

    assert run_main(main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the ") and remedy in error and error.count("\n") == 1
    assert text.splitlines()[0] in error
