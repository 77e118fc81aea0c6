"""A prepared set as a whole: duplicates, and the table of identities."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_steps.identities.participants import Participant

Row = dict[str, Any]


def drop_duplicates(prepared: Sequence[tuple[Row, str]]) -> list[Row]:
    """Rows in their order; a photograph with the bytes of an earlier kept one is not kept."""
    first: dict[str, str] = {}
    rows = []
    for row, digest in prepared:
        if row["kept"] and digest in first:
            row = row | {"file": None, "sha256": None, "box": None, "landmarks": None}
            row |= {"probability": None, "kept": False, "reason": f"duplicate of {first[digest]}"}
        elif row["kept"]:
            first[digest] = row["source"]
        rows.append(row)
    return rows


def identity_table(
    rows: Sequence[Row],
    identities: Sequence[str],
    participants: Mapping[str, Participant],
    consent: str,
) -> str:
    """The text of identities.csv."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["identity", "gender", "n_images", "source", "consent"])
    for identity in identities:
        own = [row for row in rows if row["kept"] and row["identity"] == identity]
        sources = dict.fromkeys(row["source"].split("/", 1)[0] for row in own)
        gender = participants.get(identity, Participant()).gender
        table.writerow([identity, gender, len(own), ";".join(sources), consent])
    return buffer.getvalue()
