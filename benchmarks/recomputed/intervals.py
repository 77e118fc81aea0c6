"""Draws, and intervals by really leaving people out. Definitions: docs/metrics.md."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]
NAN = float("nan")


def generator(seed: int, *keys: str) -> np.random.Generator:
    """The stream of one purpose: 63 bits of BLAKE2b over the JSON list of seed and keys."""
    text = json.dumps([seed, *keys], separators=(",", ":")).encode("ascii")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return np.random.Generator(np.random.PCG64(number // 2))


def left_out(people: Sequence[str], groups: int, rng: np.random.Generator) -> list[list[str]]:
    """Who is left out, one after the other; many people are dealt into groups at random."""
    if len(people) <= groups:
        return [[person] for person in people]
    member = rng.permutation(np.arange(len(people)) % groups)
    return [[p for p, m in zip(people, member, strict=True) if m == g] for g in range(groups)]


def student(centre: float, samples: Sequence[Array], level: float) -> tuple[float, float]:
    """centre -+ t * standard error of the jackknife; samples of several sets add up."""
    variances, freedoms = [], []
    for values in samples:
        g = len(values)
        deviations = values - values.mean()
        variances.append(float((deviations**2).sum() * (g - 1) / g))
        second, fourth = float((deviations**2).mean()), float((deviations**4).mean())
        kurtosis = fourth / second**2 if second > 0 else 1.0
        freedom = 2 * g / max(kurtosis - 1, 1e-9) - 1
        freedoms.append(min(max(freedom, min(2.0, max(g - 1, 1))), max(g - 1, 1)))
    total = sum(variances)
    if total == 0:
        return centre, centre
    parts = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    reach = stats.t.ppf((1 + level) / 2, total**2 / parts) * math.sqrt(total)
    return centre - reach, centre + reach


def expanded_percentiles(values: Array, n_people: int, level: float) -> tuple[float, float]:
    """Percentiles moved outwards to the width of Student's t (Hesterberg, 2015)."""
    values = values[np.isfinite(values)]
    if n_people < 2 or len(values) < 2:
        return NAN, NAN
    t = stats.t.ppf((1 + level) / 2, n_people - 1) * math.sqrt(n_people / (n_people - 1))
    tail = stats.norm.cdf(-t)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
