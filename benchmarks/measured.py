"""Measured numbers with their intervals: counted, printed, and kept in a JSON file."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from pipeline_steps.io.atomic import write_json
from pipeline_steps.runtime.errors import StepError

REPLICATES = 1000


@dataclass(frozen=True)
class Row:
    """One measured number: a value with its 95 % interval (None where there is none) and count."""

    what: str
    value: float
    low: float | None
    high: float | None
    n: int


def proportion(what: str, hits: int, n: int) -> Row:
    """A proportion with its Wilson interval."""
    from scipy import stats

    if n == 0:
        raise StepError(f"{what}: there is nothing to count")
    limits = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Row(what, hits / n, float(limits.low), float(limits.high), n)


def mean(what: str, values: ArrayLike, rng: np.random.Generator) -> Row:
    """A mean with its bootstrap percentile interval over the values."""
    data = np.asarray(values)
    draws = data[rng.integers(len(data), size=(REPLICATES, len(data)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Row(what, float(data.mean()), float(low), float(high), len(data))


def hardware() -> str:
    """The processor and how many of its cores there are."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text."""
    width = max(len(row.what) for row in rows)
    lines = []
    for row in rows:
        limits = "" if row.low is None else f"[{row.low:.4f}, {row.high:.4f}]"
        lines.append(f"{row.what:<{width}}  {row.value:8.4f}  {limits:<18}  n = {row.n}")
    return "\n".join(lines)


def add(out: Path, part: str, rows: Sequence[Row], **facts: float) -> None:
    """Put a part's rows into the JSON file `out`, with date, hardware and further facts."""
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    results[part] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "rows": [asdict(row) for row in rows],
        **facts,
    }
    write_json(out, results)
