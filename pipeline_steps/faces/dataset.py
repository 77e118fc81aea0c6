"""A prepared set as a whole: duplicates, the table of identities, and what looks odd about it.

The Tufts Face Database's file names are not documented: that their second number is the camera's
position on a semicircle is inferred. If it is, the head's yaw follows it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pipeline_steps.faces.pose import head_pose

Row = dict[str, Any]

FOLLOWS = 0.7
"""Rank correlation of yaw and position from which one follows the other."""

FEWEST = 10
"""Photographs below which nothing is said about a correlation."""


def yaw_follows_position(rows: Sequence[Mapping[str, Any]], resolution: int) -> float | None:
    """Size of the rank correlation between camera position and estimated yaw, over kept images.

    Args:
        rows: manifest rows.
        resolution: side of the prepared images in pixels.

    Returns:
        In [0, 1], whichever way the positions are counted; None where there are too few images or
        only one position.
    """
    seen = [row for row in rows if row["kept"] and row["position"] is not None]
    positions = [row["position"] for row in seen]
    if len(seen) < FEWEST or len(set(positions)) < 2:
        return None
    landmarks = np.stack([np.asarray(row["landmarks"]).reshape(5, 2) for row in seen])
    yaw = head_pose(landmarks, resolution)[:, 1]
    if len(np.unique(yaw)) < 2:
        return 0.0
    return abs(float(spearmanr(positions, yaw, nan_policy="omit").statistic))


def oddities(
    rows: Sequence[Mapping[str, Any]], resolution: int, genders: Mapping[str, str]
) -> list[str]:
    """Sentences for the log; none where all is as expected."""
    sentences = []
    correlation = yaw_follows_position(rows, resolution)
    if correlation is not None and correlation < FOLLOWS:
        sentences.append(
            f"estimated yaw does not follow the position in the file names (rank correlation "
            f"{correlation:.2f}): check prepare.file_pattern and prepare.positions"
        )
    kept = Counter(row["identity"] for row in rows if row["kept"])
    if kept:
        views = {(row["camera"], row["position"]) for row in rows if row["kept"]} - {(None, None)}
        median = float(np.median(list(kept.values())))
        if views and median < len(views) / 2:
            sentences.append(
                f"identities have {median:g} images in the median where the file names tell "
                f"{len(views)} views apart: check prepare.file_pattern"
            )
    unknown = sorted(set(kept) - set(genders)) if genders else []
    if unknown:
        shown = ", ".join(unknown[:10]) + (", …" if len(unknown) > 10 else "")
        sentences.append(f"the gender table lacks {len(unknown)} identities: {shown}")
    return sentences


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
    rows: Sequence[Row], identities: Sequence[str], genders: Mapping[str, str], consent: str
) -> str:
    """The text of identities.csv."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["identity", "gender", "n_images", "source", "consent"])
    for identity in identities:
        own = [row for row in rows if row["kept"] and row["identity"] == identity]
        sources = dict.fromkeys(row["source"].split("/", 1)[0] for row in own)
        table.writerow([identity, genders.get(identity, ""), len(own), ";".join(sources), consent])
    return buffer.getvalue()
