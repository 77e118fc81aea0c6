"""Image pairs of an audit, the most suspicious first: what a person should look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline_steps.evidence.audit.audit import Audit, Evidence
from pipeline_steps.naming import REAL, WILD

GENERATED = "generated"
PAIR_COLUMNS = (
    "check",
    "rank",
    "flagged",
    "identity",
    "file",
    "other_set",  # generated, real or wild
    "other_identity",
    "other_file",
    "similarity",
    "threshold",
    "note",
)


def suspicious_pairs(evidence: Evidence, result: Audit, count: int) -> list[dict[str, Any]]:
    """Pairs of every check, flagged ones first, then the closest of those that passed.

    Args:
        evidence: what was audited.
        result: the audit.
        count: pairs per check.

    Returns:
        Rows of PAIR_COLUMNS. `similarity` and `threshold` are what the check compares: the mean
        similarity to a person (swaps), the median of two identities' image pairs (collisions), the
        agreement of pixels (copies), the similarity of the two images (strangers).
    """
    found = {
        "swaps": _swaps(evidence, result),
        "collisions": _collisions(evidence, result),
        "copies": _copies(evidence, result),
        "strangers": _strangers(evidence, result),
    }
    rows = []
    for check, pairs in found.items():
        ranked = sorted(pairs, key=lambda pair: (not pair["flagged"], -pair["suspicion"]))
        for rank, pair in enumerate(ranked[:count], start=1):
            row = {"check": check, "rank": rank} | pair
            rows.append({name: row[name] for name in PAIR_COLUMNS})
    return rows


def _swaps(evidence: Evidence, result: Audit) -> list[dict[str, Any]]:
    """Images of which another person than the one meant is the nearest, by their advantage."""
    photographs, pairs = evidence.photographs, []
    for index, row in enumerate(result.samples):
        nearest = row["nearest_identity"]
        if nearest == row["identity"]:
            continue
        theirs = np.flatnonzero(photographs.identities == nearest)
        similarity = photographs.embeddings[theirs] @ evidence.images.embeddings[index]
        best = photographs.files[theirs[int(similarity.argmax())]]
        own = row["own_similarity"]
        pairs.append(
            _pair(row, REAL, nearest, best, row["nearest_similarity"], evidence.thresholds.person)
            | {
                "flagged": row["shows"] == "other",
                "suspicion": row["nearest_similarity"] - (0.0 if np.isnan(own) else own),
                "note": f"to {row['identity']} itself {own:.2f}",
            }
        )
    return pairs


def _collisions(evidence: Evidence, result: Audit) -> list[dict[str, Any]]:
    limit, pairs = evidence.thresholds.image, []
    for pair in result.collisions:
        first, second = (result.samples[row] for row in pair.rows)
        pairs.append(
            _pair(first, GENERATED, pair.second, second["file"], pair.similarity, limit)
            | {
                "flagged": pair.similarity >= limit,
                "suspicion": pair.similarity,
                "note": f"their photographs {pair.photographs:.2f}",
            }
        )
    return pairs


def _copies(evidence: Evidence, result: Audit) -> list[dict[str, Any]]:
    owners = dict(zip(evidence.photographs.files, evidence.photographs.identities, strict=True))
    pairs = []
    for row in result.samples:
        file, pixel = row["pixel_photograph"], row["pixel_similarity"]
        if not file:
            continue
        pairs.append(
            _pair(row, REAL, str(owners[file]), file, pixel, evidence.pixel_threshold)
            | {
                "flagged": row["copy"],
                "suspicion": pixel,
                "note": f"recogniser {row['photograph_similarity']:.2f}",
            }
        )
    return pairs


def _strangers(evidence: Evidence, result: Audit) -> list[dict[str, Any]]:
    if evidence.wild is None:
        return []
    owners = dict(zip(evidence.wild.files, evidence.wild.identities, strict=True))
    pairs = []
    for row in result.samples:
        file, similarity = row["wild_file"], row["wild_similarity"]
        pairs.append(
            _pair(row, WILD, str(owners[file]), file, similarity, evidence.thresholds.search)
            | {
                "flagged": row["stranger"],
                "suspicion": similarity,
                "note": f"to {row['identity']} {row['own_similarity']:.2f}",
            }
        )
    return pairs


def _pair(
    row: dict[str, Any], other_set: str, identity: str, file: str, value: float, limit: float
) -> dict[str, Any]:
    return {
        "identity": row["identity"],
        "file": row["file"],
        "other_set": other_set,
        "other_identity": identity,
        "other_file": file,
        "similarity": value,
        "threshold": limit,
    }
