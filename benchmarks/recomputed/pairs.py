"""Numbers of pairs of images (identity.csv, comparison.csv, recognition.csv), by plain counting.

Definitions: docs/metrics.md. Nothing of the project is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from recomputed.intervals import NAN, left_out, student
from recomputed.sets import lengths_one

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
GROUPS = 200  # of people, left out one after the other


def pairs(
    probes: Array, probe_people: Sequence[str], gallery: Array | None, gallery_people: Sequence[str]
) -> tuple[Array, Array, Array]:
    """Cosine of every pair and both its people, as numbers; each pair within a set once."""
    names = sorted({*probe_people, *gallery_people})
    number = {name: index for index, name in enumerate(names)}
    first = np.array([number[name] for name in probe_people])
    if gallery is None:
        rows, columns = np.triu_indices(len(probes), k=1)  # no image with itself
        unit = lengths_one(probes)
        return (unit @ unit.T)[rows, columns], first[rows], first[columns]
    second = np.array([number[name] for name in gallery_people])
    scores = lengths_one(probes) @ lengths_one(gallery).T
    return scores.ravel(), np.repeat(first, len(second)), np.tile(second, len(first))


def rates(genuine: Array, impostor: Array) -> Row:
    """Error rates and moments of scores."""
    fmr, fnmr = _counted(genuine, impostor)
    spread = genuine.var() + impostor.var()
    return {
        "n_genuine": len(genuine),
        "n_impostor": len(impostor),
        "eer": _equal(fmr, fnmr),
        "fmr100": _closest(fmr, fnmr, 0.01, len(impostor)),
        "fmr1000": _closest(fmr, fnmr, 0.001, len(impostor)),
        "impostor_mean": impostor.mean(),
        "impostor_sd": impostor.std(ddof=0),
        "genuine_mean": genuine.mean(),
        "genuine_sd": genuine.std(ddof=0),
        "fdr": (genuine.mean() - impostor.mean()) ** 2 / spread,
    }


def to_mean(probes: Array, people: Sequence[str], gallery: Array, others: Sequence[str]) -> float:
    """Mean of one minus the cosine of an image and its person's mean photograph."""
    found = []
    for row, name in zip(lengths_one(probes), people, strict=True):
        own = lengths_one(gallery)[np.array(others) == name]
        if len(own):
            mean = own.mean(axis=0)
            found.append(1 - row @ mean / math.sqrt(mean @ mean))
    return float(np.mean(found)) if found else NAN


def _counted(genuine: Array, impostor: Array) -> tuple[Array, Array]:
    """FMR and FNMR at every score that occurs, ascending: a pair matches at >= it."""
    scores = np.clip(np.concatenate([genuine, impostor]), -1, 1)
    thresholds, which = np.unique(scores, return_inverse=True)
    of_genuine = np.bincount(which[: len(genuine)], minlength=len(thresholds))
    of_impostor = np.bincount(which[len(genuine) :], minlength=len(thresholds))
    rejected = np.cumsum(of_genuine) - of_genuine
    matched = len(impostor) - (np.cumsum(of_impostor) - of_impostor)
    return matched / len(impostor), rejected / len(genuine)


def _equal(fmr: Array, fnmr: Array) -> float:
    fmr, fnmr = np.append(fmr, 0.0), np.append(fnmr, 1.0)  # a threshold above every score
    crossing = next(i for i in range(len(fmr)) if fmr[i] <= fnmr[i])
    after = (fmr[crossing] + fnmr[crossing]) / 2
    if crossing == 0 or fmr[crossing] == fnmr[crossing]:
        return float(after)
    return float(min(after, (fmr[crossing - 1] + fnmr[crossing - 1]) / 2))


def _closest(fmr: Array, fnmr: Array, wanted: float, n_impostor: int) -> float:
    if n_impostor < 1 / wanted:
        return NAN
    distance = np.abs(fmr - wanted)
    return float(fnmr[np.flatnonzero(distance == distance.min())[0]])


def chosen(first: Array, second: Array, how: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Which pairs are genuine, and which impostor pairs count."""
    genuine, impostor = np.flatnonzero(first == second), np.flatnonzero(first != second)
    if how == "equal" and len(genuine) < len(impostor):
        few = rng.choice(len(impostor), size=len(genuine), replace=False, shuffle=False)
        impostor = impostor[np.sort(few)]
    return genuine, impostor


def rate_limits(
    scores: Array,
    first: Array,
    second: Array,
    genuine: Array,
    impostor: Array,
    level: float,
    rng: np.random.Generator,
) -> Row:
    """Limits of EER and FDR, by leaving out one person (or group) after the other."""
    people = sorted({*first.tolist(), *second.tolist()})
    if len(people) < 3:
        return dict.fromkeys(("eer_low", "eer_high", "fdr_low", "fdr_high"), NAN)
    whole = rates(scores[genuine], scores[impostor])
    without = []
    for gone in left_out([str(person) for person in people], GROUPS, rng):
        out = [int(person) for person in gone]
        stays = ~(np.isin(first, out) | np.isin(second, out))
        own, others = genuine[stays[genuine]], impostor[stays[impostor]]
        empty = len(own) == 0 or len(others) == 0
        without.append((NAN, NAN) if empty else _eer_and_fdr(scores[own], scores[others]))
    eers, fdrs = np.array(without).T
    low, high = _eer_limits(whole["eer"], eers, len(people), len(genuine), level)
    if np.isnan(fdrs).any():
        return {"eer_low": low, "eer_high": high, "fdr_low": NAN, "fdr_high": NAN}
    fdr_low, fdr_high = student(math.sqrt(whole["fdr"]), [np.sqrt(fdrs)], level)
    return {
        "eer_low": low,
        "eer_high": high,
        "fdr_low": max(fdr_low, 0.0) ** 2,
        "fdr_high": max(fdr_high, 0.0) ** 2,
    }


def _eer_and_fdr(genuine: Array, impostor: Array) -> tuple[float, float]:
    found = rates(genuine, impostor)
    return found["eer"], found["fdr"]


def _eer_limits(
    eer: float, without: Array, n_people: int, n: int, level: float
) -> tuple[float, float]:
    """Wilson's limits for the effective number of pairs; rare errors: at most 8 a person."""
    tail = (1 - level) / 2
    if np.isnan(without).any():
        return NAN, NAN
    if eer == 0:
        return 0.0, 1 - tail ** (1 / n_people)
    g = len(without)
    variance = float(((without - without.mean()) ** 2).sum() * (g - 1) / g)
    most = min(float(n), n_people * (8.0 if eer <= 0.05 else 8.0 * (eer / 0.05) ** 2))
    if variance > 0 and eer * (1 - eer) / variance < most:
        effective = eer * (1 - eer) / variance
        return wilson(eer, effective, stats.t.ppf(1 - tail, g - 1)) if effective else (0.0, 1.0)
    return wilson(eer, most, stats.norm.ppf(1 - tail))


def wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's limits: the roots p of (p - share)^2 = quantile^2 p (1 - p) / n."""
    z2 = quantile**2 / n
    roots = np.roots([1 + z2, -(2 * share + z2), share**2]).real
    return max(float(min(roots)), 0.0), min(float(max(roots)), 1.0)


def bootstrap(
    scores: Array, first: Array, second: Array, genuine: Array, impostor: Array, draws: Array
) -> Array:
    """EER, FDR and genuine mean of each draw of people, by really repeating scores, [draws, 3]."""
    found = []
    for times in draws:
        own = np.repeat(scores[genuine], times[first[genuine]])
        others = np.repeat(scores[impostor], times[first[impostor]] * times[second[impostor]])
        if len(own) == 0 or len(others) == 0:
            found.append((NAN, NAN, NAN))
            continue
        eer, fdr = _eer_and_fdr(own, others)
        found.append((eer, fdr, float(own.mean())))
    return np.array(found).reshape(-1, 3)


def fold_accuracies(distances: Array, same: Array, folds: int) -> list[float]:
    """Accuracy of each fold, at the threshold that is best on the other ones."""
    n = len(same)
    sizes = [n // folds + (fold < n % folds) for fold in range(folds)]
    found, start = [], 0
    for size in sizes:
        own = np.zeros(n, bool)
        own[start : start + size] = True
        start += size
        best_threshold, best = 0.0, -1
        for step in range(400):
            threshold = np.arange(0, 4, 0.01)[step]
            hits = int(((distances[~own] < threshold) == same[~own]).sum())
            if hits > best:
                best_threshold, best = threshold, hits
        found.append(float(((distances[own] < best_threshold) == same[own]).mean()))
    return found


def accuracy_limits(accuracies: Sequence[float], n: int) -> tuple[float, float]:
    """95 % limits of the mean of the folds' accuracies: Wilson's for the effective number of pairs.

    That number is n over the design effect, which is how much more the folds scatter than folds of
    independent pairs would; Student's quantile stands for the normal one.
    """
    folds, share = len(accuracies), float(np.mean(accuracies))
    observed = float(np.var(accuracies, ddof=1)) / folds
    expected = share * (1 - share) / n
    effective = n / max(1.0, observed / expected) if expected > 0 else n
    return wilson(share, effective, stats.t.ppf(0.975, folds - 1))
