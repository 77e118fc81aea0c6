"""Rows of the identity table from pairs of embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline_steps.evidence.scores.scoring import IDENTITY_COLUMNS, ImageSet
from pipeline_steps.metrics.intervals import Replicates, bootstrap_verification, draw_counts
from pipeline_steps.metrics.jackknife import VerificationIntervals, verification_intervals
from pipeline_steps.metrics.pairs import Comparison, compare_between, compare_within
from pipeline_steps.metrics.score_tiles import CosineTiles, tiles_between, tiles_within
from pipeline_steps.metrics.streamed_intervals import streamed_intervals
from pipeline_steps.metrics.streams import streamed_error_rates
from pipeline_steps.metrics.verification import ErrorRates, error_rates
from pipeline_steps.study.settings.evidence import IdentitySettings

MAX_PAIRS = 20_000_000  # more are streamed, without bootstrap replicates
OPERATING_POINTS = {"fmr100": 0.01, "fmr1000": 0.001}  # column -> false match rate

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
        images: the set.
        others: the other set; None compares within the set.
        recogniser: whose embeddings are compared.
        settings: impostors, replicates and level.
        impostor_rng: draws impostors where they are drawn.
        rng: generator of the bootstrap; equal generators give paired replicates.

    Returns:
        The columns from n_genuine to fdr_high, and the rows of the bootstrap replicates, none for
        pairs that are streamed. fmr100 and fmr1000 are NaN with fewer than 100 and 1000 impostor
        pairs.
    """
    rows, names = images.features[recogniser], images.identities
    n_pairs = len(images) * (len(images) - 1) // 2 if others is None else len(images) * len(others)
    if settings.impostors == "all" and n_pairs > MAX_PAIRS:
        if others is None:
            tiles = tiles_within(rows, names)
        else:
            tiles = tiles_between(rows, names, others.features[recogniser], others.identities)
        return streamed_identity_row(tiles, settings), []
    how: dict[str, Any] = {"impostors": settings.impostors, "rng": impostor_rng}
    if others is None:
        comparison = compare_within(rows, names, **how)
    else:
        gallery = others.features[recogniser]
        comparison = compare_between(rows, names, gallery, others.identities, **how)
    row, replicates = identity_row(comparison, settings, rng)
    return row, replicate_rows(comparison, replicates)


def identity_row(
    comparison: Comparison, settings: IdentitySettings, rng: np.random.Generator
) -> tuple[dict[str, Any], Replicates]:
    """Error rates of one comparison with intervals over identities.

    Args:
        comparison: genuine and impostor pairs.
        settings: replicates and level.
        rng: generator of the bootstrap; equal generators give paired replicates.

    Returns:
        The columns from n_genuine to fdr_high, and the bootstrap replicates.
    """
    rates = error_rates(comparison.genuine.scores, comparison.impostor.scores)
    counts = draw_counts(len(comparison.identities), settings.replicates, rng)
    replicates = bootstrap_verification(comparison, counts)
    intervals = verification_intervals(comparison, rates, rng, settings.confidence)
    return _row(rates, intervals), replicates


def streamed_identity_row(tiles: CosineTiles, settings: IdentitySettings) -> dict[str, Any]:
    """The same numbers of more pairs than fit into memory, without replicates."""
    rates = streamed_error_rates(tiles).rates
    return _row(rates, streamed_intervals(tiles, rates, settings.confidence))


def _row(rates: ErrorRates, intervals: VerificationIntervals) -> dict[str, Any]:
    row = asdict(rates) | {
        "eer_low": intervals.eer.low,
        "eer_high": intervals.eer.high,
        "fdr_low": intervals.fdr.low,
        "fdr_high": intervals.fdr.high,
    }
    for name, fmr in OPERATING_POINTS.items():
        if rates.n_impostor * fmr < 1.0:  # below one pair in n no false match rate can be told
            row[name] = float("nan")
    return {name: row[name] for name in IDENTITY_COLUMNS if name in row}


def replicate_rows(comparison: Comparison, replicates: Replicates) -> list[dict[str, Any]]:
    """One row per replicate; the hash tells which rows of other sets it may be paired with."""
    names = "\n".join(comparison.identities).encode()
    identities = hashlib.sha256(names).hexdigest()
    values = zip(replicates.eer, replicates.fdr, replicates.genuine_mean, strict=True)
    return [
        {
            "identities_sha256": identities,
            "n_identities": len(comparison.identities),
            "replicate": index,
            "eer": float(eer),
            "fdr": float(fdr),
            "genuine_mean": float(genuine_mean),
        }
        for index, (eer, fdr, genuine_mean) in enumerate(values)
    ]
