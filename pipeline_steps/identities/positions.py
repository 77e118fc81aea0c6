"""Whether the positions in file names are what they are taken for.

The Tufts Face Database's file names are not documented: that their second number is the camera's
position on a semicircle is inferred. If it is, the head's yaw follows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_steps.faces.pose import head_pose

FOLLOWS = 0.7
"""Rank correlation of yaw and position from which one follows the other."""

FEWEST_IMAGES, FEWEST_POSITIONS = 5, 3
"""Below these nothing is said about a person's correlation."""


def yaw_by_position(rows: Sequence[Mapping[str, Any]], resolution: int) -> dict[str, float]:
    """Spearman's rank correlation of camera position and estimated yaw, for each person.

    Args:
        rows: manifest rows; those kept count, with landmarks in the prepared image's pixels.
        resolution: side of the prepared images in pixels.

    Returns:
        Identity to a number in [-1, 1]; people with too few images or positions are not there.
        Which sign is right is not known, but it is the same for all people.
    """
    from scipy.stats import spearmanr  # takes longer to load than many a step to run

    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kept"] and row["position"] is not None:
            groups[row["identity"]].append(row)
    found = {}
    for identity, own in groups.items():
        positions = [row["position"] for row in own]
        if len(own) < FEWEST_IMAGES or len(set(positions)) < FEWEST_POSITIONS:
            continue
        landmarks = np.stack([np.asarray(row["landmarks"]).reshape(5, 2) for row in own])
        yaw = head_pose(landmarks, resolution)[:, 1]
        known = np.isfinite(yaw)
        if known.sum() < FEWEST_IMAGES or len(np.unique(yaw[known])) < 2:
            found[identity] = 0.0
            continue
        found[identity] = float(spearmanr(np.array(positions)[known], yaw[known]).statistic)
    return found


def not_following(correlations: Mapping[str, float]) -> list[str]:
    """People whose yaw does not follow the position, or goes the other way than most people's."""
    if not correlations:
        return []
    way = 1.0 if np.median(list(correlations.values())) >= 0 else -1.0
    return [name for name, value in correlations.items() if not way * value >= FOLLOWS]
