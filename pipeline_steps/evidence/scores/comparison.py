"""Differences between fine-tuning methods, with intervals paired over identities.

All methods depict the same people, and easy and hard people are so for every method. Resampling the
same identities for both methods cancels that shared part, which two separate intervals contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from pipeline_steps.evidence.names import competes, order_key
from pipeline_steps.metrics.intervals import percentile_interval

SETTING = ("base_model", "prompts", "versus", "recogniser")
METRICS = ("eer", "fdr", "genuine_mean")
COMPARISON_COLUMNS = (*SETTING, "metric", "method", "minus_method", "difference", "low", "high")


def compare_methods(
    replicates: Sequence[pd.DataFrame], identity: pd.DataFrame, confidence: float
) -> list[dict[str, Any]]:
    """Differences between every two fine-tuning methods.

    Args:
        replicates: bootstrap replicates of each variant; those with equal identities used the same
            draws, so their differences are replicates of the difference.
        identity: the identity table, for the differences themselves.
        confidence: level of the intervals.

    Returns:
        A row per pair of methods, metric, recogniser and opponent. Where a method lost an identity,
        its draws are of other identities and the interval is empty.
    """
    by = [*SETTING, "method"]
    draws = {
        tuple(map(str, key)): group for frame in replicates for key, group in frame.groupby(by)
    }
    points = {tuple(map(str, key)): group.iloc[0] for key, group in identity.groupby(by)}
    settings = sorted({key[:4] for key in draws}, key=lambda key: [order_key(part) for part in key])
    rows: list[dict[str, Any]] = []
    for setting in settings:
        methods = {key[4] for key in draws if key[:4] == setting and competes(key[4])}
        for first, second in combinations(sorted(methods, key=order_key), 2):
            keys = (*setting, second), (*setting, first)
            if not all(key in points for key in keys):
                continue
            a, b = (draws[key] for key in keys)
            paired = set(a["identities_sha256"]) == set(b["identities_sha256"])
            for metric in METRICS:
                values = a[metric].to_numpy() - b[metric].to_numpy() if paired else np.empty(0)
                interval = percentile_interval(values, int(a["n_identities"].iloc[0]), confidence)
                difference = float(points[keys[0]][metric]) - float(points[keys[1]][metric])
                rows.append(
                    dict(zip(SETTING, setting, strict=True))
                    | {"metric": metric, "method": second, "minus_method": first}
                    | {"difference": difference, "low": interval.low, "high": interval.high}
                )
    return rows
