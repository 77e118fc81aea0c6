"""Verdicts of an identity audit from its counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal["pass", "look", "fail"]
SEVERITY: tuple[Verdict, ...] = ("pass", "look", "fail")
CHECKS = ("swaps", "collisions", "copies", "strangers")
VERDICTS = {check: f"{check}_verdict" for check in CHECKS}  # check -> column of its verdict


def verdicts(counts: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict per check and over all, and one sentence.

    fail: an identity shows another person on the whole, two identities are one that their
    photographs tell apart, or an image is a near copy. look: single images are suspicious, or the
    check could not be made. For strangers as many images as chance explains pass.

    Args:
        counts: the numbers of SUMMARY_COLUMNS.
    """
    judged = not math.isnan(counts["pixel_threshold"])
    found: dict[str, Verdict] = {
        "swaps": _grade(counts["swapped_identities"], counts["swapped_images"]),
        "collisions": _grade(
            counts["collisions"] - counts["collisions_of_photographs"], counts["collisions"]
        ),
        "copies": _grade(counts["copies"], not judged),
        "strangers": "look",
    }
    if not math.isnan(counts["strangers_by_chance"]):
        most = _most_by_chance(counts["n_images"], counts["strangers_by_chance"])
        found["strangers"] = _grade(counts["stranger_identities"], counts["strangers"] > most)
    overall = max(found.values(), key=SEVERITY.index)
    columns = {VERDICTS[check]: verdict for check, verdict in found.items()}
    return {**columns, "verdict": overall, "sentence": _sentence(overall, counts)}


def _grade(failures: int, doubts: int | bool) -> Verdict:
    return "fail" if failures else "look" if doubts else "pass"


def _most_by_chance(n: int, expected: float, confidence: float = 0.99) -> int:
    """The count that independent images with this expectation hardly ever exceed."""
    from scipy.stats import binom

    return int(binom.ppf(confidence, n, min(1.0, expected / n)))


def _sentence(overall: Verdict, counts: Mapping[str, Any]) -> str:
    """The verdict and what speaks for it; what was not found is not listed."""

    def several(key: str, one: str, many: str) -> str:
        return f"{counts[key]} {one if counts[key] == 1 else many}"

    chance = counts["swapped_images_by_chance"]
    found = {
        "swapped_identities": several("swapped_identities", "identity shows", "identities show")
        + " another consented person on the whole",
        "swapped_images": several("swapped_images", "image shows", "images show")
        + f" another consented person (by chance {chance:.1f} at most)",
        "collisions": several("collisions", "pair of identities is", "pairs of identities are")
        + " not told apart",
        "copies": several("copies", "image is a near copy", "images are near copies")
        + " of a photograph",
        "stranger_identities": several("stranger_identities", "identity shows", "identities show")
        + " somebody of the in-the-wild set on the whole",
        "strangers": several("strangers", "image resembles", "images resemble")
        + " somebody of the in-the-wild set"
        + f" ({counts['strangers_by_chance']:.1f} expected by chance)",
    }
    parts = [text for key, text in found.items() if counts[key]]
    if math.isnan(counts["pixel_threshold"]):
        parts.append("copies were not looked for: nobody has two photographs")
    if math.isnan(counts["strangers_by_chance"]):
        parts.append("there is no reference set to look for strangers in")
    return f"{overall}: {'; '.join(parts) or 'nothing suspicious'}."
