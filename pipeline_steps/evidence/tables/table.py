"""A table as the paper lays it out, and as Markdown and LaTeX; its HTML is the report's template.

Columns are ranked within a group of rows (same base model and prompt set); the best result is
marked and so is the second. Only fine-tuning methods compete: reference sets and the untuned base
model are shown for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    "group": "Group",
    "note": "Note",
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
    """One number as shown: `0.12`, `± 0.01`, `[0.10, 0.15]`, each "" where there is none."""

    text: str
    sd: str = ""
    interval: str = ""
    mark: Mark = ""

    def joined(self, intervals: bool) -> str:
        """Number, spread and interval as one text."""
        return " ".join(filter(None, (self.text, self.sd, self.interval if intervals else "")))


@dataclass(frozen=True)
class TableRow:
    """Row headers, in full and without what repeats from the row above, and a cell per column."""

    heads: tuple[str, ...]
    shown: tuple[str, ...]
    cells: tuple[Cell, ...]
    rule_above: bool


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered; `name` labels it in LaTeX, `heads` stand over row headers."""

    name: str
    caption: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]

    @property
    def spans(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns under one upper header, which carries the direction."""
        found = groupby(self.columns, lambda c: f"{c.title} {ARROWS[c.direction]}".strip())
        return [(title, list(members)) for title, members in found]


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
            _cell(values[index], column.digits, ranks[index])
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
        keys, values: of every row; a key's last part is the method, the others are the group.
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


def _cell(value: Estimate, digits: int, mark: Mark) -> Cell:
    text, sd = value.number(digits), _rounded(value.sd, digits)
    return Cell(text, sd and f"± {sd}", value.interval(digits), mark) if text else Cell("")


def _read(rows: pd.DataFrame, column: Column, at: str) -> Estimate:
    for _, row in rows.iterrows():
        if not column.at or str(row[at]) == column.at:
            return estimate_of(row, column.key)
    return Estimate(math.nan)


def _rounded(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "" if math.isnan(value) else "∞"
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")  # no "-0.0"


def _without_repeats(heads: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    """Row headers with what repeats from the row above left blank, from the left."""
    same = 0
    while same < len(heads) - 1 and heads[: same + 1] == above[: same + 1]:
        same += 1
    return ("",) * same + heads[same:]


_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "µ": r"$\mu$", "σ": r"$\sigma$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}
    | {"→": r"$\to$", "∞": r"$\infty$", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$"}
    | {"−": "$-$", "–": "--", "“": "``", "”": "''", "’": "'", "é": r"\'e"}
)


def to_markdown(table: Table, *, intervals: bool = False) -> str:
    """A pipe table under its caption; best bold, second underlined."""
    wrap = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    parts = [(column.title, column.subtitle, ARROWS[column.direction]) for column in table.columns]
    heads = [*table.heads, *(" ".join(filter(None, part)) for part in parts)]
    rows = [
        [*row.heads, *(wrap[cell.mark].format(cell.joined(intervals)) for cell in row.cells)]
        for row in table.rows
    ]
    return f"{table.caption}\n\n{pipe_table(heads, rows, texts=len(table.heads))}\n"


def pipe_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int) -> str:
    """A Markdown table; the first `texts` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    lines = [[field.replace("|", r"\|") for field in line] for line in (heads, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(table: Table, *, intervals: bool = False) -> str:
    """A `table` environment for booktabs; repeated row headers are left blank."""
    wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    upper, rules, position = [""] * len(table.heads), "", len(table.heads) + 1
    for title, members in table.spans:
        width = len(members)
        upper.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(title)}}}")
        rules += rf"\cmidrule(lr){{{position}-{position + width - 1}}}"
        position += width
    lower = [*table.heads, *(column.subtitle for column in table.columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}",
        r"\toprule",
        _ampersands(upper),
        rules,
        _ampersands(map(latex_escape, lower)),
        r"\midrule",
    ]
    for row in table.rows:
        cells = [
            wrap[cell.mark] % latex_escape(minus(cell.joined(intervals))) if cell.text else ""
            for cell in row.cells
        ]
        lines += [r"\midrule"] * row.rule_above
        lines.append(_ampersands([*map(latex_escape, row.shown), *cells]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex_escape(text: str) -> str:
    """`text` with LaTeX's special characters and our signs as commands."""
    return text.translate(_LATEX)


def minus(numbers: str) -> str:
    """Numbers with a minus sign, which is as wide as a plus sign, where they have a hyphen."""
    return numbers.replace("-", "−")


def _ampersands(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"
