"""A table as the paper lays it out, before any markup: headers, rows, marks.

Columns are ranked within a group of rows (same base model and prompt set); the best result is
marked and so is the second. Only fine-tuning methods compete: reference sets and the untuned base
model are shown for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import pandas as pd

from pipeline_steps.evidence.names import SETS, Names, competes, sorted_groups

Direction = Literal["lower", "higher", "none"]
Mark = Literal["best", "second", ""]
ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "none": ""}
HEADS = {
    "versus": "Compared with",
    "base_model": "Data from",
    "prompts": "Prompt",
    "method": "Fine-tuning",
    "verdict": "Verdict",
}


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence limits and the spread behind it; NaN: there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan

    def number(self, digits: int = 3) -> str:
        """`0.123`."""
        return _rounded(self.value, digits)

    def interval(self, digits: int = 3) -> str:
        """`[0.100, 0.150]`, empty without interval."""
        low, high = _rounded(self.low, digits), _rounded(self.high, digits)
        return f"[{low}, {high}]" if low and high else ""

    def text(self, digits: int = 3) -> str:
        """`0.123 [0.100, 0.150]`."""
        return f"{self.number(digits)} {self.interval(digits)}".strip()

    def overlaps(self, other: Estimate) -> bool | None:
        """Whether the two intervals overlap; None without intervals."""
        if any(map(math.isnan, (self.low, self.high, other.low, other.high))):
            return None
        return self.low <= other.high and other.low <= self.high

    def beyond(self, value: float) -> int:
        """1 or -1 where the interval lies above or below a value, else 0."""
        return int(self.low > value) - int(self.high < value)


@dataclass(frozen=True)
class Column:
    """A column of numbers: the one place that says what is shown, and how.

    Attributes:
        key: column of the frame. An interval is read from its neighbours `_low` and `_high`; the
            spread behind a `<name>_mean`, shown as ±, from `<name>_sd`.
        title: upper header, without arrow; equal neighbours are joined.
        subtitle: lower header, may be empty.
        direction: which way is better; "none" is never marked.
        digits: decimals shown.
        at: which of a set's rows it is read from, where there are several; see `lay_out`.
    """

    key: str
    title: str
    subtitle: str = ""
    direction: Direction = "none"
    digits: int = 3
    at: str = ""


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
        return " ".join(filter(None, (self.text, self.sd, self.interval if intervals else "")))


@dataclass(frozen=True)
class TableRow:
    """Row headers and cells.

    Attributes:
        heads: all headers.
        shown: the same with what repeats from the row above left blank, from the left.
        cells: a cell per column.
        rule_above: whether a group starts here that is not the first.
    """

    heads: tuple[str, ...]
    shown: tuple[str, ...]
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

    @property
    def spans(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns under one upper header, which carries the direction."""
        found = groupby(self.columns, key=lambda column: (column.title, column.direction))
        return [
            (f"{title} {ARROWS[direction]}".strip(), list(members))
            for (title, direction), members in found
        ]


def lay_out(
    name: str,
    caption: str,
    frame: pd.DataFrame,
    columns: Sequence[Column],
    names: Names,
    *,
    by: Sequence[str] = SETS,
    also: Sequence[str] = (),
    at: str = "",
) -> Table:
    """The table of a frame: sorted, formatted and marked, with a rule between groups.

    Args:
        name, caption: see :class:`Table`.
        frame: rows with the columns `by`, `also` and `at`, and the keys of `columns`.
        columns: what to show.
        names: display names of base models, prompts and methods.
        by: columns that name a row; those of one group agree in all but the last, the method.
        also: further row headers.
        at: the column in which several rows of one set differ, such as `reference`; they become one
            row of the table.
    """
    groups = sorted_groups(frame, by)
    keys = [key for key, _ in groups]
    read = [[_read(rows, column, at) for _, rows in groups] for column in columns]
    marks = [
        rank_marks(keys, [found.value for found in values], column.direction)
        for column, values in zip(columns, read, strict=True)
    ]
    rows: list[TableRow] = []
    for index, (key, own) in enumerate(groups):
        first = own.iloc[0]
        heads = tuple(
            names(str(first[head])) if head in SETS else str(first[head]) for head in (*by, *also)
        )
        cells = tuple(
            make_cell(values[index], column.digits, ranks[index])
            for column, values, ranks in zip(columns, read, marks, strict=True)
        )
        shown = _without_repeats(heads, rows[-1].heads if rows else ())
        rows.append(TableRow(heads, shown, cells, index > 0 and keys[index - 1][:-1] != key[:-1]))
    titles = tuple(HEADS[head] for head in (*by, *also))
    return Table(name, caption, titles, tuple(columns), tuple(rows))


def estimate_of(row: pd.Series, key: str) -> Estimate:
    """A number of a row with its neighbours, see :class:`Column`; what the row lacks is NaN."""
    name = key.removesuffix("_mean")
    spread = f"{name}_sd" if name != key else ""
    wanted = (key, f"{name}_low", f"{name}_high", spread)
    return Estimate(*(float(row.get(column, math.nan)) for column in wanted))


def rank_marks(
    keys: Sequence[tuple[str, ...]], values: Sequence[float], direction: Direction
) -> list[Mark]:
    """Best and second of each group, by the numbers themselves, not as rounded.

    Equal numbers share a mark. A group with a single competitor has no winner.

    Args:
        keys: of every row; the last part is the method, the others are the group.
        values: a number per row.
        direction: which way is better.
    """
    marks: list[Mark] = [""] * len(values)
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for index, ((*group, method), value) in enumerate(zip(keys, values, strict=True)):
        if direction != "none" and competes(method) and not math.isnan(value):
            groups.setdefault(tuple(group), {})[index] = value
    for found in groups.values():
        ranked = sorted(set(found.values()), reverse=direction == "higher")
        for index, value in found.items() if len(found) > 1 else ():
            marks[index] = "best" if value == ranked[0] else "second" if value == ranked[1] else ""
    return marks


def make_cell(value: Estimate, digits: int, mark: Mark = "") -> Cell:
    """The number as shown; without a number the cell is empty."""
    text, sd = value.number(digits), _rounded(value.sd, digits)
    if not text:
        return Cell("")
    return Cell(text, f"± {sd}" if sd else "", value.interval(digits), mark)


def _read(rows: pd.DataFrame, column: Column, at: str) -> Estimate:
    for _, row in rows.iterrows():
        if not column.at or str(row[at]) == column.at:
            return estimate_of(row, column.key)
    return Estimate(math.nan)


def _rounded(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")  # no "-0.0"


def _without_repeats(heads: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    """Row headers with what repeats from the row above left blank, from the left."""
    same = 0
    while same < len(heads) - 1 and heads[: same + 1] == above[: same + 1]:
        same += 1
    return ("",) * same + heads[same:]
