"""Log lines and progress bars of the steps, on stderr so that stdout stays free for results.

In a job of a workflow one line tells the machine, since other jobs may run elsewhere, and the last
one what the job used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline_steps.runtime.run_lock import VARIABLE

T = TypeVar("T")

ROOT = "pipeline_steps"
LINE = "%(asctime)s %(levelname)s %(step)s %(message)s"
MACHINE, USED = "machine: ", "used: "
COMPUTES_ON = "computes on"


class _StepName(logging.Filter):
    """Adds the logger's last name part as ``step``."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.step = record.name.rpartition(".")[2]
        return True


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes between the lines of a running progress bar, to the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def get_logger(step: str) -> logging.Logger:
    """Logger of one step: one line per event on stderr, "time level step message"."""
    root = logging.getLogger(ROOT)
    if not root.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter(LINE, "%Y-%m-%d %H:%M:%S"))
        handler.addFilter(_StepName())
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(f"{ROOT}.{step}")


def progress(
    iterable: Iterable[T],
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    scaled: bool = False,
) -> tqdm[T]:
    """Progress bar on stderr; in a log file it prints at most one line every 2 seconds.

    ``scaled`` shows large counts in thousands, millions and so on.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        unit_scale=scaled,
        file=sys.stderr,
        mininterval=0.1 if terminal else 2.0,
        dynamic_ncols=terminal,
    )


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
    """In a job of a workflow: write down the machine."""
    _tell(MACHINE, this_machine)


def tell_usage() -> None:
    """In a job of a workflow, at its end: write down what this process and its children used.

    Who started the job cannot measure a fork of another process (see runtime.preloaded).
    """
    _tell(USED, usage)


def usage() -> dict[str, float]:
    """Seconds of processor so far, and the largest resident memory of one process in MiB."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "processor_seconds": round(sum(of.ru_utime + of.ru_stime for of in both), 2),
        "memory_mib": round(max(of.ru_maxrss for of in both) / 1024, 1),
    }


def _tell(mark: str, facts: Callable[[], dict[str, Any]]) -> None:
    if VARIABLE in os.environ:
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            print(f"{mark}{json.dumps(facts())}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class JobLog:
    """What a job told of itself in its log.

    Attributes:
        machine: where it ran, with the GPU it computed on or None; None: it told nothing.
        used: see :func:`usage`; empty: it told nothing.
    """

    machine: dict[str, Any] | None
    used: dict[str, float]

    @classmethod
    def read(cls, log: Path) -> JobLog:
        """Of a log, which may be missing."""
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        machine, used = _told(MACHINE, text), _told(USED, text)
        gpu = re.search(rf" lease {COMPUTES_ON} (.+)$", text, re.MULTILINE)
        if machine is not None:
            machine["gpu"] = gpu[1] if gpu else None
        return cls(machine, used or {})


def _told(mark: str, text: str) -> dict[str, Any] | None:
    found = re.search(rf"^{mark}(\{{.*\}})$", text, re.MULTILINE)
    try:
        return dict(json.loads(found[1])) if found else None
    except ValueError:
        return None
