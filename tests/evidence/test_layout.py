from __future__ import annotations

import math

from pipeline_steps.evidence.tables.layout import Column, Record, build_table, rank_marks
from pipeline_steps.evidence.tables.markup import latex_escape, to_html, to_latex, to_markdown

LOWER = Column("EER", "", "x", "lower", digits=2, low="low", high="high")
HIGHER = Column("Precision", "TFD", "y", "higher", digits=2, sd="sd")


def record(method: str, x: float, y: float, group: str = "g", competes: bool = True) -> Record:
    values = {"x": x, "y": y, "sd": 0.125, "low": x - 0.1, "high": x + 0.1}
    return Record((group, method), (group,), competes, values)


RECORDS = [
    record("untuned", 0.01, 0.99, competes=False),
    record("A", 0.30, 0.5),
    record("B", 0.20, 0.7),
    record("C", 0.10, 0.6),
    record("A", 0.5, 0.5, group="h_1"),
    record("B", 0.4, math.nan, group="h_1"),
]


def test_best_and_second_follow_the_direction_within_the_group() -> None:
    assert rank_marks(RECORDS, LOWER) == ["", "", "second", "best", "second", "best"]
    assert rank_marks(RECORDS, HIGHER) == ["", "", "best", "second", "", ""]


def test_marks_use_numbers_not_their_rounded_text_and_ties_share() -> None:
    close = [record("A", 0.1041, 0), record("B", 0.1042, 0), record("C", 0.2, 0)]
    assert rank_marks(close, LOWER) == ["best", "second", ""]
    tied = [record("A", 0.1, 0), record("B", 0.1, 0), record("C", 0.2, 0), record("D", 0.2, 0)]
    assert rank_marks(tied, LOWER) == ["best", "best", "second", "second"]


def table():
    return build_table(
        "t", "Caption with µ & more.", ("Prompt", "Method"), [LOWER, HIGHER], RECORDS
    )


def test_markdown() -> None:
    assert to_markdown(table()) == (
        "Caption with µ & more.\n"
        "\n"
        "| Prompt | Method | EER ↓ | Precision TFD ↑ |\n"
        "| --- | --- | ---: | ---: |\n"
        "| g | untuned | 0.01 | 0.99 ± 0.12 |\n"
        "| g | A | 0.30 | 0.50 ± 0.12 |\n"
        "| g | B | <u>0.20</u> | **0.70 ± 0.12** |\n"
        "| g | C | **0.10** | <u>0.60 ± 0.12</u> |\n"
        "| h_1 | A | <u>0.50</u> | 0.50 ± 0.12 |\n"
        "| h_1 | B | **0.40** |  |\n"
    )


def test_latex() -> None:
    assert to_latex(table(), intervals=True) == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{Caption with $\mu$ \& more.}",
            r"\label{tab:t}",
            r"\begin{tabular}{llrr}",
            r"\toprule",
            r" &  & \multicolumn{1}{c}{EER $\downarrow$} & "
            r"\multicolumn{1}{c}{Precision $\uparrow$} \\",
            r"\cmidrule(lr){3-3}\cmidrule(lr){4-4}",
            r"Prompt & Method &  & TFD \\",
            r"\midrule",
            r"g & untuned & 0.01 [$-$0.09, 0.11] & 0.99 $\pm$ 0.12 \\",
            r" & A & 0.30 [0.20, 0.40] & 0.50 $\pm$ 0.12 \\",
            r" & B & \underline{0.20 [0.10, 0.30]} & \textbf{0.70 $\pm$ 0.12} \\",
            r" & C & \textbf{0.10 [0.00, 0.20]} & \underline{0.60 $\pm$ 0.12} \\",
            r"\midrule",
            r"h\_1 & A & \underline{0.50 [0.40, 0.60]} & 0.50 $\pm$ 0.12 \\",
            r" & B & \textbf{0.40 [0.30, 0.50]} &  \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def test_html_marks_and_escapes() -> None:
    page = to_html(table())
    assert page.startswith('<div class="scroll"><table>')
    assert "<td><strong>0.70 ± 0.12</strong></td>" in page
    assert "<td><u>0.20</u><small>[0.10, 0.30]</small></td>" in page
    assert page.count("<tr class=rule>") == 1


def test_latex_escapes_every_special_character() -> None:
    assert latex_escape("a_b%&#$ {x}~^\\") == (
        r"a\_b\%\&\#\$ \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
