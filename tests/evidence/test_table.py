from __future__ import annotations

import math

import pandas as pd
import pytest

from pipeline_steps.evidence.names import Names
from pipeline_steps.evidence.tables.table import (
    Column,
    Estimate,
    Table,
    latex_escape,
    lay_out,
    rank_marks,
    to_latex,
    to_markdown,
)

KEYS = [("g", m) for m in ("untuned", "A", "B", "C")] + [("h", m) for m in ("A", "B")]
LOWER = Column("eer", "EER", "", "lower", digits=2)
HIGHER = Column("precision_mean", "Precision", "TFD", "higher", digits=2)


def test_best_and_second_follow_the_direction_within_the_group() -> None:
    values = [0.01, 0.3, 0.2, 0.1, 0.5, 0.4]
    assert rank_marks(KEYS, values, "lower") == ["", "", "second", "best", "second", "best"]
    assert rank_marks(KEYS, values, "none") == [""] * 6
    values = [0.99, 0.5, 0.7, 0.6, 0.5, math.nan]
    assert rank_marks(KEYS, values, "higher") == ["", "", "best", "second", "", ""]


def test_marks_use_numbers_not_their_rounded_text_and_ties_share() -> None:
    keys = [("g", name) for name in "ABCD"]
    assert rank_marks(keys[:3], [0.1041, 0.1042, 0.2], "lower") == ["best", "second", ""]
    tied = rank_marks(keys, [0.1, 0.1, 0.2, 0.2], "lower")
    assert tied == ["best", "best", "second", "second"]
    assert rank_marks(keys[:2], [0.1, 0.1], "lower") == ["best", "best"]


def table() -> Table:
    numbers = {
        ("g", "untuned"): (0.01, 0.99),
        ("g", "A"): (0.30, 0.5),
        ("g", "B"): (0.20, 0.7),
        ("g", "C"): (0.10, 0.6),
        ("h_1", "A"): (0.5, 0.5),
        ("h_1", "B"): (0.4, math.nan),
    }
    rows = [
        {"base_model": "m", "prompts": prompts, "method": method, "eer": x, "precision_mean": y}
        | {"eer_low": x - 0.1, "eer_high": x + 0.1, "precision_sd": 0.125, "eer_sd": 9.0}
        for (prompts, method), (x, y) in reversed(numbers.items())
    ]
    by = ("prompts", "method")
    names, caption = Names({"untuned": "none"}), "Caption with µ & more."
    return lay_out("t", caption, pd.DataFrame(rows), [LOWER, HIGHER], names, by=by)


def test_markdown() -> None:
    assert to_markdown(table()) == (
        "Caption with µ & more.\n"
        "\n"
        "| Prompt | Fine-tuning | EER ↓ | Precision TFD ↑ |\n"
        "| --- | --- | ---: | ---: |\n"
        "| g | none | 0.01 | 0.99 ± 0.12 |\n"
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
            r"Prompt & Fine-tuning &  & TFD \\",
            r"\midrule",
            r"g & none & 0.01 [$-$0.09, 0.11] & 0.99 $\pm$ 0.12 \\",
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


def test_rows_of_one_set_stand_side_by_side_and_those_that_lack_one_are_empty() -> None:
    rows = [
        {"base_model": "m", "prompts": "p", "method": method, "at": at, "x": x}
        for method, at, x in (("A", "real", 1.0), ("A", "wild", 2.0), ("B", "wild", 3.0))
    ]
    columns = [Column("x", "X", at, "higher", 0, at) for at in ("real", "wild")]
    found = lay_out("t", "", pd.DataFrame(rows), columns, Names(), at="at")
    texts = [[cell.text for cell in row.cells] for row in found.rows]
    assert texts == [["1", "2"], ["", "3"]]
    assert [row.shown for row in found.rows] == [("m", "p", "A"), ("", "", "B")]
    assert found.spans == [("X ↑", columns)]


def test_numbers_without_interval_show_none_and_zero_has_no_sign() -> None:
    assert Estimate(0.12345).text() == "0.123"
    assert Estimate(2.0, 1.0, 3.0).text(1) == "2.0 [1.0, 3.0]"
    assert Estimate(math.nan).text() == ""
    assert Estimate(-0.0001, -0.2, 0.0).text(2) == "0.00 [-0.20, 0.00]"


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [(0.1, 3.0, 1), (-0.1, 3.0, 0), (-3.0, -0.1, -1), (math.nan, math.nan, 0)],
)
def test_an_interval_lies_on_one_side_of_a_value_or_leaves_it_open(
    low: float, high: float, side: int
) -> None:
    assert Estimate(0.0, low, high).beyond(0.0) == side


def test_latex_escapes_every_special_character() -> None:
    assert latex_escape("a_b%&#$ {x}~^\\") == (
        r"a\_b\%\&\#\$ \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
