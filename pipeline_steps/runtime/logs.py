"""Log lines and progress bars of the steps, on stderr so that stdout stays free for results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

ROOT = "pipeline_steps"
LINE = "%(asctime)s %(levelname)s %(step)s %(message)s"


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
