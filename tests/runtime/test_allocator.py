"""The allocator keeps freed memory: no page is cleared twice."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipeline_steps.runtime.lease import GLIBC_VARIABLES, keep_freed_memory

FAULTS = """
import resource, sys
from pipeline_steps.runtime.lease import keep_freed_memory
import numpy as np
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        blocks = [np.ones(1 << 20, dtype=np.float32) for _ in range(8)]
        del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_is_not_given_back_between_allocations() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in GLIBC_VARIABLES}

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    assert platform.libc_ver()[0] == "glibc"
    assert faults("keep") < 1000 < 10_000 < faults("leave")


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()
