"""Score tables as CSV: fixed columns, fixed digits, read back with checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.io.atomic import write_text
from pipeline_steps.runtime.errors import StepError


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]] | pd.DataFrame, columns: Sequence[str]
) -> None:
    """Write rows atomically, with eight significant digits and an empty field for NaN."""
    table = pd.DataFrame(rows, columns=list(columns))
    write_text(path, table.to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def read_csv(path: Path, columns: Sequence[str] = (), *, texts: bool = False) -> pd.DataFrame:
    """Read a table that a step wrote.

    Args:
        path: the file.
        columns: columns that have to be there.
        texts: leave every field the text that it is, "" where it is empty.

    Raises:
        StepError: the file is missing, unreadable, or lacks a column.
    """
    if not path.is_file():
        raise StepError(f"table {path} is missing: run the step that writes it first")
    try:
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("it was cut, its last line has no end")
        # Names such as "none" or "NA" are names; only an empty field is a missing value.
        kept: dict[str, Any] = {"dtype": str} if texts else {"na_values": [""]}
        table = pd.read_csv(path, keep_default_na=False, **kept)
    except (ValueError, OSError) as error:
        raise StepError(f"table {path} is unreadable ({error}): delete it and run again") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise StepError(f"table {path} lacks the columns {missing}; it has {list(table.columns)}")
    return table


def aligned_columns(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Lines of a table for people, the first row being its head.

    Args:
        rows: Cells, as many in each row.
        right: All columns but the first are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
