"""The machine that a job ran on, as a line in the job's log."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from pipeline_steps.runtime.run_lock import VARIABLE

LINE = "machine: "
COMPUTES_ON = "computes on"


def this_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in MiB, and operating system."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": pages * size // 2**20,
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def tell_machine() -> None:
    """In a job of a workflow: write down the machine, since others may run elsewhere."""
    if VARIABLE in os.environ:
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            print(f"{LINE}{json.dumps(this_machine())}", file=sys.stderr, flush=True)


def machine_of_log(log: Path) -> dict[str, Any] | None:
    """The machine that a job told in its log, with the GPU it computed on or None.

    Returns:
        None where there is no such log, or the job told nothing.
    """
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    told = re.search(rf"^{LINE}(\{{.*\}})$", text, re.MULTILINE)
    if told is None:
        return None
    try:
        machine: dict[str, Any] = json.loads(told[1])
    except ValueError:
        return None
    gpu = re.search(rf" lease {COMPUTES_ON} (.+)$", text, re.MULTILINE)
    return machine | {"gpu": gpu[1] if gpu else None}
