"""What all tables of variants share: row headers, groups that compete, and the order of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline_steps.evidence.tables.layout import Record, competes
from pipeline_steps.evidence.tables.names import Names, order_key
from pipeline_steps.naming import VARIANT

HEADS = ("Data from", "Prompt", "Fine-tuning")
LEGEND = "Best fine-tuning result in bold, second best underlined."


def sorted_groups(
    frame: pd.DataFrame, keys: Sequence[str]
) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows by key, in the paper's order."""
    found = [(tuple(map(str, key)), rows) for key, rows in frame.groupby(list(keys), sort=False)]
    return sorted(found, key=lambda item: tuple(order_key(part) for part in item[0]))


def record_of(
    row: pd.Series, names: Names, values: Mapping[str, float], versus: str | None = None
) -> Record:
    """The record of a table row that names a variant or reference set.

    Args:
        row: a row with the columns base_model, method and prompts.
        names: display names.
        values: column key -> number.
        versus: what was compared with, a further row header; None where there is one only.
    """
    base_model, method, prompts = (str(row[key]) for key in VARIANT)
    heads: tuple[str, ...] = (names(base_model), names(prompts), names(method))
    group: tuple[str, ...] = (base_model, prompts)
    if versus is not None:
        heads, group = (versus, *heads), (versus, *group)
    return Record(heads, group, competes(method), values)


def set_sizes(frame: pd.DataFrame) -> str:
    """A sentence on how many images were compared."""
    sizes = pd.concat([frame["n_synthetic"], frame["n_real"]]).astype(int)
    low, high = sizes.min(), sizes.max()
    return f"{low} images per set." if low == high else f"{low} to {high} images per set."
