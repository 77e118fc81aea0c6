"""Numbers of sets of images (quality.csv), as literal as memory allows.

Full matrices of distances, covariances by numpy, roots of matrices by eigenvectors. Definitions:
docs/metrics.md. Nothing of the project is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from recomputed.intervals import NAN, generator, left_out, student

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


def compared(
    seed: int, settings: Row, source: str, reference: str, n_source: int, n_reference: int
) -> tuple[Array, Array]:
    """Which rows of the reference and of the set are compared, in ascending order."""
    real, synthetic = np.arange(n_reference), np.arange(n_source)
    if source == reference:
        order = generator(seed, "score", "halves", source).permutation(n_source)
        half = n_source // 2
        real, synthetic = np.sort(order[:half]), np.sort(order[half : 2 * half])
    most = settings["max_images"] or max(len(real), len(synthetic))
    smallest = min(len(real), len(synthetic), most)
    drawn = []
    for rows, keys in ((real, (reference,)), (synthetic, ("synthetic", source))):
        size = smallest if settings["equal_n"] else min(len(rows), most)
        if size < len(rows):
            rng = generator(seed, "score", "draw", *keys)
            rows = rows[np.sort(rng.choice(len(rows), size=size, replace=False))]
        drawn.append(rows)
    return drawn[0], drawn[1]


def frechet(x: Array, y: Array) -> float:
    """|difference of means|^2 + trace of (A + B - 2 (A^1/2 B A^1/2)^1/2)."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = _root(a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0.0, None)).sum()
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2.0 * cross)


def _root(a: Array) -> Array:
    values, vectors = np.linalg.eigh(a)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def gaussian_mmd(x: Array, y: Array, sigma: float, scale: float) -> float:
    """Biased squared MMD of unit rows."""
    x, y = lengths_one(x), lengths_one(y)

    def mean(a: Array, b: Array) -> float:
        return float(np.expm1(-cdist(a, b, "sqeuclidean") / (2 * sigma**2)).mean())

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def manifolds(real: Array, synthetic: Array, k: int) -> Row:
    """Precision, recall, density, coverage and AuthPct."""
    between = cdist(real, synthetic)
    radius_real = np.sort(_others(real), axis=1)[:, k - 1]
    radius_synthetic = np.sort(_others(synthetic), axis=1)[:, k - 1]
    in_ball_of_real = between <= radius_real[:, None]
    in_ball_of_synthetic = between <= radius_synthetic[None, :]
    nearest_real = between.argmin(axis=0)
    own_neighbour = _others(real).min(axis=1)
    return {
        "precision": float(in_ball_of_real.any(axis=0).mean()),
        "recall": float(in_ball_of_synthetic.any(axis=1).mean()),
        "density": float(in_ball_of_real.sum(axis=0).mean() / k),
        "coverage": float(in_ball_of_real.any(axis=1).mean()),
        "authpct": float(100 * (between.min(axis=0) > own_neighbour[nearest_real]).mean()),
    }


def _others(x: Array) -> Array:
    """Distances to all other rows."""
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    return distances


def polynomial_mmd(x: Array, y: Array) -> float:
    """Unbiased squared MMD with (a.b / d + 1)^3."""
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = (np.power(a @ b.T / d + 1.0, 3) for a, b in ((x, x), (y, y), (x, y)))
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def kernel_distance(
    x: Array, y: Array, subsets: int, size: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Mean and population sd over subsets; small sets whole and once."""
    if min(len(x), len(y)) <= size:
        return polynomial_mmd(x, y), NAN
    values = []
    for _ in range(subsets):
        rows = rng.choice(len(x), size=size, replace=False)
        columns = rng.choice(len(y), size=size, replace=False)
        values.append(polynomial_mmd(x[rows], y[columns]))
    return float(np.mean(values)), float(np.std(values))


def frechet_at_infinity(x: Array, y: Array, rng: np.random.Generator) -> float:
    """Value at 1/n = 0 of the line through 15 distances of random subsets."""
    n = min(len(x), len(y))
    sizes = [int(size) for size in np.linspace(n / 2, n, 15)]
    distances = []
    for size in sizes:
        rows = rng.choice(len(x), size=size, replace=False)
        columns = rng.choice(len(y), size=size, replace=False)
        distances.append(frechet(x[rows], y[columns]))
    return float(stats.linregress([1 / size for size in sizes], distances).intercept)


def vendi(x: Array) -> float:
    """exp of the entropy of the eigenvalues of the cosines over n."""
    x = lengths_one(x)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    return math.exp(-sum(value * math.log(value) for value in values if value > 0))


def lengths_one(x: Array) -> Array:
    """Rows of length 1."""
    return x / np.sqrt((x**2).sum(axis=1))[:, None]


def per_person(values: Array, people: Sequence[str]) -> dict[str, Array]:
    """Rows of each person who has two or more."""
    names = np.array(people)
    found = {str(name): values[names == name] for name in sorted(set(people))}
    return {name: rows for name, rows in found.items() if len(rows) > 1}


@dataclass
class Compared:
    """A set and a reference.

    Attributes:
        features: extractor -> features of all images of the reference and of the set.
        rows: which of them are compared, of the reference and of the set.
        people: whose all images are, of the reference and of the set.
        settings: of the score step.
        rng: purpose -> generator.
    """

    features: Callable[[str], tuple[Array, Array]]
    rows: tuple[Array, Array]
    people: tuple[Sequence[str], Sequence[str]]
    settings: Row
    rng: Callable[[str], np.random.Generator]

    def pair(self, role: str) -> tuple[Array, Array]:
        """Features of the rows that are compared, of the reference and of the set."""
        real, synthetic = self.features(self.settings[f"{role}_extractor"])
        return real[self.rows[0]], synthetic[self.rows[1]]

    def whole(self, role: str) -> Array:
        """Features of all images of the set."""
        return self.features(self.settings[f"{role}_extractor"])[1]

    @cached_property
    def manifolds(self) -> Row:
        """Precision, recall, density, coverage and AuthPct."""
        return manifolds(*self.pair("prdc"), self.settings["k"])

    @cached_property
    def kernel_distance(self) -> tuple[float, float]:
        """Mean and sd."""
        subsets, size = self.settings["kd_subsets"], self.settings["kd_subset_size"]
        return kernel_distance(*self.pair("frechet"), subsets, size, self.rng("kernel distance"))


def vendi_within(sets: Compared) -> float:
    """Mean over people with two images or more."""
    found = per_person(sets.whole("prdc"), sets.people[1])
    return float(np.mean([vendi(rows) for rows in found.values()])) if found else NAN


def prompt_score(sets: Compared) -> float:
    """Mean over images whose prompts ask for anything that is read."""
    name = sets.settings["prompt_extractor"]
    found = [float(x) for x in sets.features(name)[1][:, 0] if x >= 0] if name else []
    return sum(found) / len(found) if found else NAN


QUALITY: dict[str, Callable[[Compared], float]] = {
    "fid": lambda sets: frechet(*sets.pair("frechet")),
    "cmmd": lambda sets: gaussian_mmd(
        *sets.pair("cmmd"), sets.settings["cmmd_sigma"], sets.settings["cmmd_scale"]
    ),
    "precision": lambda sets: sets.manifolds["precision"],
    "recall": lambda sets: sets.manifolds["recall"],
    "density": lambda sets: sets.manifolds["density"],
    "coverage": lambda sets: sets.manifolds["coverage"],
    "authpct": lambda sets: sets.manifolds["authpct"],
    "face_quality_mean": lambda sets: sets.whole("face_quality").mean(),
    "face_quality_sd": lambda sets: sets.whole("face_quality").var() ** 0.5,
    "fd_inf": lambda sets: (
        frechet_at_infinity(*sets.pair("frechet"), sets.rng("extrapolation"))
        if sets.settings["fd_infinity"]
        else NAN
    ),
    "kd": lambda sets: sets.kernel_distance[0],
    "kd_sd": lambda sets: sets.kernel_distance[1],
    "vendi": lambda sets: vendi(sets.pair("prdc")[1]),
    "vendi_within_identity": vendi_within,
    "prompt_score": prompt_score,
}


def frechet_limits(sets: Compared) -> tuple[float, float]:
    """Limits of the Fréchet distance: people left out with all their images, on square roots."""
    settings, rng = sets.settings, sets.rng("interval")
    x, y = sets.pair("frechet")
    x_people, y_people = (np.array(p)[r] for p, r in zip(sets.people, sets.rows, strict=True))
    groups = settings["replicates"]
    if groups < 2:
        return NAN, NAN

    def deal(people: Sequence[str]) -> list[set[str]]:
        return [set(people) - set(gone) for gone in left_out(people, groups, rng)]

    def without(staying: set[str] | None, other: set[str] | None) -> float:
        a = x if staying is None else x[[name in staying for name in x_people]]
        b = y if other is None else y[[name in other for name in y_people]]
        return frechet(a, b) if min(len(a), len(b)) > 1 else NAN

    if set(x_people) & set(y_people):
        samples = [[without(stay, stay) for stay in deal(sorted({*x_people, *y_people}))]]
    else:
        samples = [
            [without(stay, None) for stay in deal(sorted(set(x_people)))],
            [without(None, stay) for stay in deal(sorted(set(y_people)))],
        ]
    if any(len(sample) < 2 or np.isnan(sample).any() for sample in samples):
        return NAN, NAN
    roots = [np.sqrt(np.maximum(sample, 0)) for sample in samples]
    low, high = student(math.sqrt(frechet(x, y)), roots, settings["confidence"])
    return max(low, 0.0) ** 2, max(high, 0.0) ** 2
