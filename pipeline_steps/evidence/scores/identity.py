"""Rows of the identity table from embeddings, and differences between fine-tuning methods.

All methods depict the same people, and easy and hard people are so for every method. Resampling the
same identities for both methods cancels that shared part, which two separate intervals contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from pipeline_steps.evidence.names import competes, order_key
from pipeline_steps.evidence.scores.sets import NO_IMAGE, ImageSet
from pipeline_steps.metrics.intervals import draw_counts, percentile_interval
from pipeline_steps.metrics.pairs import MAX_PAIRS, OPERATING_POINTS, compare
from pipeline_steps.metrics.references import reference_distance
from pipeline_steps.metrics.verification import (
    ErrorRates,
    bootstrap_verification,
    comparison_error_rates,
)
from pipeline_steps.naming import REASONS, VARIANT
from pipeline_steps.study.settings.evidence import IdentitySettings

IDENTITY_COLUMNS = (
    *(*VARIANT, "versus", "recogniser", "n_genuine", "n_impostor"),
    *("eer", "eer_low", "eer_high", "fmr100", "fmr1000"),
    *("impostor_mean", "impostor_sd", "genuine_mean", "genuine_sd"),
    *("fdr", "fdr_low", "fdr_high", "reference_distance"),
    REASONS,
)
METRICS = ("eer", "fdr", "genuine_mean")
REPLICATE_COLUMNS = (
    *(*VARIANT, "versus", "recogniser", "identities_sha256", "n_identities", "replicate"),
    *METRICS,
)
SETTING = ("base_model", "prompts", "versus", "recogniser")
COMPARISON_COLUMNS = (*SETTING, "metric", "method", "minus_method", "difference", "low", "high")

Row = dict[str, Any]


def identity_numbers(
    images: ImageSet,
    others: ImageSet | None,
    recogniser: str,
    settings: IdentitySettings,
    *,
    impostor_rng: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[Row, list[Row]]:
    """Error rates of a set against another one, or of its images among themselves.

    Args:
        images, others: the set and the other one; None compares within the set.
        recogniser: whose embeddings are compared.
        settings: impostors, replicates and level.
        impostor_rng: draws impostors where they are drawn.
        rng: generator of the bootstrap; equal generators give paired replicates.

    Returns:
        The columns from n_genuine on, and the rows of the bootstrap replicates. fmr100 and fmr1000
        are NaN with fewer than 100 and 1000 impostor pairs.

    """
    if not len(images) or (others is not None and not len(others)):
        return {"n_genuine": 0, "n_impostor": 0, REASONS: NO_IMAGE}, []
    comparison = compare(
        images.features[recogniser],
        images.identities,
        *(() if others is None else (others.features[recogniser], others.identities)),
        impostors=settings.impostors,
        rng=impostor_rng,
        keep=MAX_PAIRS,
    )
    counts = draw_counts(comparison.units, settings.replicates, rng)
    drawn = bootstrap_verification(comparison, counts)
    rates = comparison_error_rates(comparison, level=settings.confidence, rng=rng)
    row = {name: value for name, value in asdict(rates).items() if name in IDENTITY_COLUMNS}
    for name, fmr in OPERATING_POINTS.items():
        if rates.n_impostor * fmr < 1.0:  # below one pair in n no false match rate can be told
            row[name] = float("nan")
    row[REASONS] = _reasons(rates, within=others is None)
    if others is not None:
        row["reference_distance"] = reference_distance(
            images.features[recogniser],
            images.identities,
            others.features[recogniser],
            others.identities,
        )
    # Tells which rows of other sets these may be paired with: equal draws of equal units.
    names = [str(comparison.units), *comparison.identities]
    units = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return row, [
        {"identities_sha256": units, "n_identities": comparison.units, "replicate": index}
        | {metric: float(getattr(drawn, metric)[index]) for metric in METRICS}
        for index in range(len(counts))
    ]


def _reasons(rates: ErrorRates, within: bool) -> str:
    if not rates.n_genuine:
        why = "nobody has two images" if within else "the sets have nobody in common"
        return f"no genuine pair: {why}"
    if not rates.n_impostor:
        return "no impostor pair: all images show one person"
    return "all scores are equal" if isnan(rates.fdr) else ""


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
