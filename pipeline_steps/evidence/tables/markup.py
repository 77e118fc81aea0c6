"""Tables as Markdown and LaTeX; as HTML they stand in the report's template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline_steps.evidence.tables.table import ARROWS, Column, Table

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
    heads = [*table.heads, *map(_one_line, table.columns)]
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
    for title, members in table.spans:
        width = len(members)
        upper.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(title)}}}")
        rules.append(rf"\cmidrule(lr){{{position}-{position + width - 1}}}")
        position += width
    lower = [*table.heads, *(column.subtitle for column in table.columns)]
    lines.append(_ampersands(upper))
    lines.append("".join(rules))
    lines.append(_ampersands(map(latex_escape, lower)))
    lines.append(r"\midrule")
    for row in table.rows:
        if row.rule_above:
            lines.append(r"\midrule")
        cells = [
            wrap[cell.mark] % latex_escape(minus(cell.joined(intervals))) if cell.text else ""
            for cell in row.cells
        ]
        lines.append(_ampersands([*map(latex_escape, row.shown), *cells]))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """`text` with LaTeX's special characters and our signs as commands."""
    return "".join(_LATEX.get(character, character) for character in text)


def minus(numbers: str) -> str:
    """Numbers with a minus sign, which is as wide as a plus sign, where they have a hyphen."""
    return numbers.replace("-", "−")


def _one_line(column: Column) -> str:
    parts = (column.title, column.subtitle, ARROWS[column.direction])
    return " ".join(part for part in parts if part)


def _ampersands(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"
