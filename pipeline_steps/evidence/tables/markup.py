"""Tables as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from pipeline_steps.evidence.tables.layout import ARROWS, Cell, Column, Table, TableRow

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "σ": r"$\sigma$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "“": "``",
    "”": "''",
    "’": "'",
    "é": r"\'e",
}


def to_markdown(table: Table, *, intervals: bool = False) -> str:
    """A pipe table under its caption; best bold, second underlined."""
    wrap = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    headers = [*table.heads, *(_one_line(column) for column in table.columns)]
    lines = [f"{table.caption}", "", _pipes(headers)]
    lines.append(_pipes(["---"] * len(table.heads) + ["---:"] * len(table.columns)))
    for row in table.rows:
        texts = [cell.joined(intervals) for cell in row.cells]
        marked = [
            wrap[cell.mark].format(text) if text else ""
            for cell, text in zip(row.cells, texts, strict=True)
        ]
        lines.append(_pipes([*row.heads, *marked]))
    return "\n".join(lines) + "\n"


def to_latex(table: Table, *, intervals: bool = False) -> str:
    """A `table` environment for booktabs; repeated row headers are left blank."""
    wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    n_heads, n_columns = len(table.heads), len(table.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{'l' * n_heads}{'r' * n_columns}}}",
        r"\toprule",
    ]
    upper, rules, position = [""] * n_heads, [], n_heads + 1
    for title, members in _spans(table.columns):
        width = len(members)
        upper.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(title)}}}")
        rules.append(rf"\cmidrule(lr){{{position}-{position + width - 1}}}")
        position += width
    lower = [*table.heads, *(column.subtitle for column in table.columns)]
    lines.append(_ampersands(upper))
    lines.append("".join(rules))
    lines.append(_ampersands([latex_escape(text) for text in lower]))
    lines.append(r"\midrule")
    for row, heads in zip(table.rows, _without_repeats(table.rows), strict=True):
        if row.rule_above:
            lines.append(r"\midrule")
        cells = [
            wrap[cell.mark] % latex_escape(_minus(cell.joined(intervals))) if cell.text else ""
            for cell in row.cells
        ]
        lines.append(_ampersands([*(latex_escape(head) for head in heads), *cells]))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """The `table` element, without caption; intervals in a second line of the cell."""
    head_cells = "".join(
        f'<th rowspan="2" scope="col" class="text">{html.escape(head)}</th>' for head in table.heads
    )
    upper, lower = [], []
    for title, members in _spans(table.columns):
        if len(members) == 1 and not members[0].subtitle:
            upper.append(f'<th rowspan="2" scope="col">{html.escape(title)}</th>')
            continue
        upper.append(f'<th colspan="{len(members)}" scope="colgroup">{html.escape(title)}</th>')
        lower += [f'<th scope="col">{html.escape(column.subtitle)}</th>' for column in members]
    body = []
    for row, heads in zip(table.rows, _without_repeats(table.rows), strict=True):
        cells = "".join(f"<th scope='row'>{html.escape(head)}</th>" for head in heads)
        cells += "".join(_html_cell(cell) for cell in row.cells)
        body.append(f"<tr{' class=rule' if row.rule_above else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head_cells}{"".join(upper)}</tr>'
        f"<tr>{''.join(lower)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def latex_escape(text: str) -> str:
    """`text` with LaTeX's special characters and our signs as commands."""
    return "".join(_LATEX.get(character, character) for character in text)


def _html_cell(cell: Cell) -> str:
    number = html.escape(_minus(" ".join(part for part in (cell.text, cell.sd) if part)))
    tag = {"best": "strong", "second": "u", "": "span"}[cell.mark]
    interval = f"<small>{html.escape(_minus(cell.interval))}</small>" if cell.interval else ""
    return f"<td><{tag}>{number}</{tag}>{interval}</td>" if number else "<td></td>"


def _minus(numbers: str) -> str:
    """Numbers with a minus sign, which is as wide as a plus sign, where they have a hyphen."""
    return numbers.replace("-", "−")


def _spans(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Neighbouring columns under one upper header, which carries the direction."""
    spans = groupby(columns, key=lambda column: (column.title, column.direction))
    return [
        (f"{title} {ARROWS[direction]}".strip(), list(members))
        for (title, direction), members in spans
    ]


def _one_line(column: Column) -> str:
    parts = (column.title, column.subtitle, ARROWS[column.direction])
    return " ".join(part for part in parts if part)


def _without_repeats(rows: Sequence[TableRow]) -> list[tuple[str, ...]]:
    """Row headers with what repeats from the row above left blank, from the left."""
    shown = []
    previous: tuple[str, ...] = ()
    for row in rows:
        heads = list(row.heads)
        for index in range(len(heads) - 1):
            if row.heads[: index + 1] != previous[: index + 1]:
                break
            heads[index] = ""
        shown.append(tuple(heads))
        previous = row.heads
    return shown


def _pipes(fields: Sequence[str]) -> str:
    return "| " + " | ".join(field.replace("|", r"\|") for field in fields) + " |"


def _ampersands(fields: Sequence[str]) -> str:
    return " & ".join(fields) + r" \\"
