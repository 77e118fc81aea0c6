"""How often intervals of a ten-fold accuracy hold the truth.

    python benchmarks/accuracy_coverage.py

Distances of pairs are drawn from many kinds of distributions, a threshold is chosen as the protocol
does, and the interval is held against the mean accuracy over draws. The formula was chosen on the
kinds of CHOSEN_ON; those of HELD_OUT were looked at once, afterwards.

Prints, for each kind, size and accuracy, how often these hold the truth: Wilson's interval of all
pairs (as if they were independent), Student's t over the folds, and the one in use. The seeds are
fixed: the same command prints the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from pipeline_steps.metrics.intervals import wilson_interval
from pipeline_steps.recognition.protocol import N_FOLDS, THRESHOLDS, accuracy_interval
from pipeline_steps.study.command import run_main

BATCH = 200  # draws at once, each batch from its own seed
ACCURACIES = (0.5, 0.55, 0.7, 0.9, 0.97, 0.99, 0.998)
MIDDLE = 1.3  # between the distances of both kinds of pairs

Random = np.random.Generator
# Distances [draws, pairs] from a generator, that shape, which pairs show one person, separation.
Kind = Callable[[Random, tuple[int, int], np.ndarray, float], np.ndarray]


def shifted(noise: np.ndarray, same: np.ndarray, apart: float) -> np.ndarray:
    """Noise about two means, `apart` from each other."""
    return np.clip(MIDDLE + np.where(same, -apart / 2, apart / 2) + noise, 0, 4)


def by_person(rng: Random, shape: tuple[int, int], shuffled: bool) -> np.ndarray:
    """Normal noise, a quarter of whose variance six pairs of one person share."""
    person = np.repeat(rng.standard_normal((shape[0], -(-shape[1] // 6))), 6, axis=1)[:, : shape[1]]
    if shuffled:
        person = person[:, rng.permutation(shape[1])]
    return 0.25 * (0.5 * person + np.sqrt(0.75) * rng.standard_normal(shape))


def normal(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Normal, of equal variance."""
    return shifted(0.25 * rng.standard_normal(shape), same, apart)


def skewed(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Genuine pairs with a long tail to large distances."""
    gamma = 0.2 * (rng.gamma(2, 1, shape) - 2)
    return shifted(np.where(same, gamma, 0.22 * rng.standard_normal(shape)), same, apart)


def heavy(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Student's t with three degrees of freedom."""
    return shifted(0.15 * rng.standard_t(3, shape), same, apart)


def people(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Six pairs a person, all in one fold."""
    return shifted(by_person(rng, shape, False), same, apart)


def scattered(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Six pairs a person, in any fold."""
    return shifted(by_person(rng, shape, True), same, apart)


def hard_pairs(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """One genuine pair in 25 looks like an impostor; unequal variances."""
    hard = (rng.random(shape) < 0.04) & same
    noise = np.where(same, 0.28, 0.16) * rng.standard_normal(shape)
    return np.clip(MIDDLE + np.where(same & ~hard, -apart / 2, apart / 2) + noise, 0, 4)


def narrow(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Laplace, hardly wider than the steps of the thresholds."""
    return shifted(0.03 * rng.laplace(size=shape) + 0.005, same, apart)


def bounded(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Both bounded, of different shape."""
    one = rng.random(shape) ** 1.5 * 1.6
    return np.where(same, one, 1.6 * apart / 3 + rng.beta(3, 2, shape) * 1.6)


def uneven_folds(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Folds of different difficulty."""
    fold = np.repeat(rng.standard_normal((shape[0], N_FOLDS)), shape[1] // N_FOLDS, axis=1)
    side = np.where(same, -1, 1) * (apart / 2) * np.exp(0.15 * fold)
    return np.clip(MIDDLE + side + 0.25 * rng.standard_normal(shape), 0, 4)


def logistic(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Logistic, of unequal variances."""
    noise = np.where(same, 0.17, 0.08) * rng.logistic(size=shape)
    return np.clip(1.2 + np.where(same, -apart / 2, apart / 2) + noise, 0, 4)


def very_heavy(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Student's t with one and a half degrees of freedom: no variance."""
    return shifted(0.1 * rng.standard_t(1.5, shape), same, apart)


def embedded(rng: Random, shape: tuple[int, int], same: np.ndarray, apart: float) -> np.ndarray:
    """Images of people who differ in scatter, eight pairs to a person, folds of distinct people."""
    draws, pairs = shape
    fold, width, images = pairs // N_FOLDS, 24, 4
    count = max(6, fold // 8)
    row = np.arange(N_FOLDS)[:, None]
    result = np.empty(shape)
    for draw in range(draws):
        people_at = rng.standard_normal((N_FOLDS, count, 1, width))
        scatter = 1e3 * np.ones(1)
        if apart > 0:
            uneven = np.exp(0.35 * rng.standard_normal((N_FOLDS, count, 1, 1)))
            scatter = uneven * 3.0 / max(apart, 1e-3) ** 0.8
        x = people_at + scatter * rng.standard_normal((N_FOLDS, count, images, width))
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        one = rng.integers(count, size=(N_FOLDS, fold))
        other = (one + rng.integers(1, count, size=(N_FOLDS, fold))) % count
        image = rng.integers(images, size=(N_FOLDS, fold))
        second = (image + rng.integers(1, images, size=(N_FOLDS, fold))) % images
        partner = np.where(same.reshape(N_FOLDS, fold), one, other)
        result[draw] = np.square(x[row, one, image] - x[row, partner, second]).sum(-1).ravel()
    return result


CHOSEN_ON: dict[str, Kind] = {
    kind.__name__: kind for kind in (normal, skewed, heavy, people, scattered)
}
HELD_OUT: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (hard_pairs, narrow, bounded, uneven_folds, logistic, very_heavy, embedded)
}
KINDS = CHOSEN_ON | HELD_OUT


def fold_accuracies(distances: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The protocol for many draws [draws, pairs] at once -> accuracies [draws, folds]."""
    draws, pairs = distances.shape
    size, steps = pairs // N_FOLDS, len(THRESHOLDS)
    first = np.searchsorted(THRESHOLDS, distances, side="right")  # the first threshold to match
    place = np.repeat(np.arange(N_FOLDS), size) * (steps + 1) + first
    sign = np.where(same, 1, -1)
    hits = np.empty((draws, N_FOLDS, steps))
    different = np.count_nonzero(~same.reshape(N_FOLDS, size), axis=1)
    for draw in range(draws):
        counts = np.bincount(place[draw], sign, minlength=N_FOLDS * (steps + 1))
        gained = counts.reshape(N_FOLDS, -1)[:, :steps].cumsum(axis=1)
        hits[draw] = gained + different[:, None]
    best = (hits.sum(axis=1, keepdims=True) - hits).argmax(axis=2)
    return np.take_along_axis(hits, best[:, :, None], axis=2)[:, :, 0] / size


def separation(kind: Kind, accuracy: float) -> float:
    """How far apart both kinds of pairs have to be for this accuracy."""
    if accuracy == 0.5:
        return 0.0
    same = np.tile([True, False], 3000)
    low, high = 0.0, 60.0 if kind is embedded else 6.0
    for _ in range(18):
        middle = (low + high) / 2
        found = fold_accuracies(kind(np.random.default_rng(5), (8, 6000), same, middle), same)
        low, high = (middle, high) if found.mean() < accuracy else (low, middle)
    return (low + high) / 2


def coverages(kind: Kind, pairs: int, accuracy: float, draws: int) -> tuple[float, list[float]]:
    """The true accuracy, and in which share of draws each interval holds it."""
    same, apart = np.tile([True, False], pairs // 2), separation(kind, accuracy)
    shape = (BATCH, pairs)
    batches = [
        fold_accuracies(kind(np.random.default_rng([3, batch]), shape, same, apart), same)
        for batch in range(max(1, draws // BATCH))
    ]
    folds = np.concatenate(batches)
    means, errors = folds.mean(axis=1), stats.sem(folds, axis=1)
    truth = float(means.mean())
    reach = stats.t.ppf(0.975, N_FOLDS - 1) * errors
    limits = [
        np.array([wilson_interval(float(mean), pairs) for mean in means]),
        np.column_stack([means - reach, means + reach]),
        np.array([accuracy_interval(draw, pairs) for draw in folds]),
    ]
    held = [float(((found[:, 0] <= truth) & (truth <= found[:, 1])).mean()) for found in limits]
    return truth, held


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1600, help="of each situation; by 200")
    parser.add_argument("--pairs", type=int, nargs="+", default=[600, 6000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args(argv)
    print(f"{'kind':14} pairs   truth   Wilson  t over folds  in use")
    for pairs in arguments.pairs:
        for name in arguments.kinds:
            for accuracy in ACCURACIES:
                truth, held = coverages(KINDS[name], pairs, accuracy, arguments.draws)
                shares = "  ".join(f"{100 * share:6.1f}" for share in held)
                print(f"{name:14} {pairs:5}  {truth:.4f}  {shares}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
