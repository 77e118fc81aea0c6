"""Tables beyond the paper's: further measures of fidelity and diversity, and the identity audit."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from pipeline_steps.evidence.tables.grouping import (
    HEADS,
    LEGEND,
    record_of,
    set_sizes,
    sorted_groups,
)
from pipeline_steps.evidence.tables.layout import Column, Direction, Table, build_table, numbers
from pipeline_steps.evidence.tables.names import Names, order_key

# (column of the quality table, title, which way is better, digits, whether it has a reference)
FURTHER: tuple[tuple[str, str, Direction, int, bool], ...] = (
    ("fd_inf", "Fréchet, n → ∞", "lower", 3, True),
    ("kd", "KD", "lower", 3, True),
    ("density", "Density", "higher", 3, True),
    ("coverage", "Coverage", "higher", 3, True),
    ("authpct", "AuthPct", "higher", 1, True),
    ("vendi", "Vendi", "higher", 2, True),  # of the images drawn for that comparison
    ("vendi_within_identity", "Vendi per identity", "higher", 2, False),
)


def diversity_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Density, coverage and whatever further set measures the scores hold; none: no table."""
    measures = [m for m in FURTHER if m[0] in frame.columns and frame[m[0]].notna().any()]
    if not measures:
        return []
    references = sorted(frame["reference"].unique(), key=order_key)
    columns = [
        Column(
            title,
            names(reference) if against else "",
            f"{key}@{reference}" if against else key,
            direction,
            digits=digits,
        )
        for key, title, direction, digits, against in measures
        for reference in (references if against else references[:1])
    ]
    records = []
    for _, rows in sorted_groups(frame, ["base_model", "prompts", "method"]):
        values: dict[str, float] = {}
        for _, row in rows.iterrows():
            values |= numbers(row, [m[0] for m in measures if m[4]], f"@{row['reference']}")
            values |= numbers(row, [m[0] for m in measures if not m[4]])
        records.append(record_of(rows.iloc[0], names, values))
    caption = f"Further measures of fidelity and diversity. {set_sizes(frame)} {LEGEND}"
    return [build_table("diversity", caption, HEADS, columns, records)]


def audit_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Counts and verdict of every variant's identity audit; nothing is ranked."""
    columns = [
        Column("Images", "", "n_images", digits=0),
        Column("Shows", "own person", "own_share", digits=2),
        Column("Shows", "nobody", "nobody_share", digits=2),
        Column("Swapped", "images", "swapped_images", digits=0),
        Column("Swapped", "by chance", "swapped_images_by_chance", digits=1),
        Column("Swapped", "identities", "swapped_identities", digits=0),
        Column("Colliding", "identities", "collisions", digits=0),
        Column("Copies", "", "copies", digits=0),
        Column("Strangers", "images", "strangers", digits=0),
        Column("Strangers", "by chance", "strangers_by_chance", digits=1),
        Column("Strangers", "identities", "stranger_identities", digits=0),
    ]
    keys = [column.value for column in columns]
    records = []
    for _, rows in sorted_groups(frame, ["base_model", "prompts", "method"]):
        record = record_of(rows.iloc[0], names, numbers(rows.iloc[0], keys))
        records.append(replace(record, heads=(*record.heads, str(rows.iloc[0]["verdict"]))))
    first = frame.iloc[0]
    caption = (
        f"Identity audit by {names(str(first['recogniser']))} at a false match rate of "
        f"{float(first['fmr']):g} among the photographs. Swapped: shows another consented person; "
        "colliding: pairs of generated identities that are one; copies: near copies of "
        "photographs; strangers: shows somebody of the in-the-wild set."
    )
    return [build_table("audit", caption, (*HEADS, "Verdict"), columns, records)]
