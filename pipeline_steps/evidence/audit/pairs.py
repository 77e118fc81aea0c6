"""Image pairs of an audit, the most suspicious first: what a person should look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline_steps.evidence.audit.checks import Audit, Evidence
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
        ranked = sorted(pairs, key=lambda pair: (not pair[1]["flagged"], -pair[0]))
        for rank, (_, pair) in enumerate(ranked[:count], start=1):
            rows.append({"check": check, "rank": rank} | pair)
    return rows


Suspect = tuple[float, dict[str, Any]]  # how suspicious a pair is, and its row


def _swaps(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    """Images of which another person than the one meant is the nearest, by their advantage."""
    photographs, limit = evidence.photographs, evidence.thresholds.person
    for index, row in enumerate(result.samples):
        nearest, similarity = row["nearest_identity"], row["nearest_similarity"]
        if nearest == row["identity"]:
            continue
        theirs = np.flatnonzero(photographs.identities == nearest)
        images = photographs.embeddings[theirs] @ evidence.images.embeddings[index]
        best = photographs.files[theirs[int(images.argmax())]]
        own = row["own_similarity"]
        pair = _pair(row, REAL, nearest, best, similarity, limit, row["shows"] == "other")
        note = f"to {row['identity']} itself {own:.2f}"
        yield similarity - (0.0 if np.isnan(own) else own), pair | {"note": note}


def _collisions(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    limit = evidence.thresholds.image
    for found in result.collisions:
        first, second = (result.samples[row] for row in found.rows)
        flagged = found.similarity >= limit
        file, similarity = second["file"], found.similarity
        pair = _pair(first, GENERATED, found.second, file, similarity, limit, flagged)
        yield similarity, pair | {"note": f"their photographs {found.photographs:.2f}"}


def _copies(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    owners = dict(zip(evidence.photographs.files, evidence.photographs.identities, strict=True))
    for row in result.samples:
        file, pixel = row["pixel_photograph"], row["pixel_similarity"]
        if file:
            owner, limit = str(owners[file]), evidence.pixel_threshold
            pair = _pair(row, REAL, owner, file, pixel, limit, row["copy"])
            yield pixel, pair | {"note": f"recogniser {row['photograph_similarity']:.2f}"}


def _strangers(evidence: Evidence, result: Audit) -> Iterator[Suspect]:
    wild = evidence.wild
    owners = dict(zip(wild.files, wild.identities, strict=True)) if wild is not None else {}
    for row in result.samples if owners else ():
        file, similarity = row["wild_file"], row["wild_similarity"]
        owner, limit = str(owners[file]), evidence.thresholds.search
        pair = _pair(row, WILD, owner, file, similarity, limit, row["stranger"])
        yield similarity, pair | {"note": f"to {row['identity']} {row['own_similarity']:.2f}"}


def _pair(
    row: dict[str, Any],
    other_set: str,
    identity: str,
    file: str,
    similarity: float,
    limit: float,
    flagged: bool,
) -> dict[str, Any]:
    return {
        "flagged": flagged,
        "identity": row["identity"],
        "file": row["file"],
        "other_set": other_set,
        "other_identity": identity,
        "other_file": file,
        "similarity": similarity,
        "threshold": limit,
    }
