"""Tables as the paper lays them out, before any markup: headers, rows, marks.

Columns are ranked within a group of rows (same base model and prompt set); the best result is
marked and so is the second. Only fine-tuning methods compete: reference sets and the untuned base
model are shown for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from pipeline_steps.naming import UNTUNED
from pipeline_steps.study.sources import NOT_APPLICABLE

Direction = Literal["lower", "higher", "none"]
Mark = Literal["best", "second", ""]
ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "none": ""}


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        title: upper header, without arrow; equal neighbours are joined.
        subtitle: lower header, may be empty.
        value: key of the number in a row's record.
        direction: which way is better; "none" is never marked.
        digits: decimals shown.
        sd, low, high: keys of a spread (shown as ±) and of an interval, or "".
    """

    title: str
    subtitle: str
    value: str
    direction: Direction = "none"
    digits: int = 3
    sd: str = ""
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Cell:
    """One number as shown.

    Attributes:
        text: the number, "" where there is none.
        sd: "± …" text or "".
        interval: "[low, high]" text or "".
        mark: rank within the group.
    """

    text: str
    sd: str = ""
    interval: str = ""
    mark: Mark = ""

    def joined(self, intervals: bool) -> str:
        """Number, spread and interval as one text."""
        parts = [self.text, self.sd, self.interval if intervals else ""]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class TableRow:
    """Row headers and cells; `rule_above` asks for a line between groups."""

    heads: tuple[str, ...]
    cells: tuple[Cell, ...]
    rule_above: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered.

    Attributes:
        name: file name without suffix.
        caption: one or two sentences.
        heads: titles of the row headers.
        columns: the columns of numbers.
        rows: the rows, in order.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Record:
    """The numbers of one table row.

    Attributes:
        heads: row headers as shown.
        group: rows of one group are ranked against each other.
        competes: whether this row can be marked.
        values: column key -> number; missing or NaN is shown empty.
    """

    heads: tuple[str, ...]
    group: tuple[str, ...]
    competes: bool
    values: Mapping[str, float]


def build_table(
    name: str,
    caption: str,
    heads: Sequence[str],
    columns: Sequence[Column],
    records: Sequence[Record],
) -> Table:
    """Format and mark the records, with a rule between groups."""
    marks = [rank_marks(records, column) for column in columns]
    rows = []
    for index, record in enumerate(records):
        cells = tuple(
            replace(make_cell(record.values, column), mark=column_marks[index])
            for column, column_marks in zip(columns, marks, strict=True)
        )
        rule = index > 0 and records[index - 1].group != record.group
        rows.append(TableRow(record.heads, cells, rule))
    return Table(name, caption, tuple(heads), tuple(columns), tuple(rows))


def rank_marks(records: Sequence[Record], column: Column) -> list[Mark]:
    """Best and second of each group, by the numbers themselves, not as rounded.

    Equal numbers share a mark. A group with a single competitor has no winner.
    """
    marks: list[Mark] = [""] * len(records)
    if column.direction == "none":
        return marks
    sign = 1.0 if column.direction == "lower" else -1.0
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for index, record in enumerate(records):
        value = record.values.get(column.value, math.nan)
        if record.competes and not math.isnan(value):
            groups.setdefault(record.group, {})[index] = sign * value
    for group in groups.values():
        if len(group) < 2:
            continue
        ranked = sorted(set(group.values()))
        for index, value in group.items():
            if value == ranked[0]:
                marks[index] = "best"
            elif value == ranked[1]:
                marks[index] = "second"
    return marks


def make_cell(values: Mapping[str, float], column: Column) -> Cell:
    """The formatted number of one column, without a mark."""

    def number(key: str) -> str:
        value = values.get(key, math.nan) if key else math.nan
        if math.isnan(value):
            return ""
        text = f"{value:.{column.digits}f}"
        return text if float(text) else text.removeprefix("-")  # no "-0.0"

    text, sd = number(column.value), number(column.sd)
    low, high = number(column.low), number(column.high)
    interval = f"[{low}, {high}]" if low and high else ""
    return Cell(text, f"± {sd}" if text and sd else "", interval if text else "")


def competes(method: str) -> bool:
    """Whether rows of this method are ranked."""
    return method not in (UNTUNED, NOT_APPLICABLE)


def numbers(row: pd.Series, keys: Sequence[str], suffix: str = "") -> dict[str, float]:
    """Numeric fields of a table row as `key + suffix` -> float."""
    return {f"{key}{suffix}": float(row[key]) for key in keys if key in row.index}
