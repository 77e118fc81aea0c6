"""How often intervals of a small equal error rate hold the truth, in many kinds of populations.

    python benchmarks/eer_coverage.py

People are drawn, images of each or scores of their pairs, and the interval is held against the
error rate of the population. The formula and its bounds were chosen on these populations. The seeds
are fixed: the same command prints the same numbers.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_steps.metrics.intervals import error_rate_interval
from pipeline_steps.metrics.pairs import Comparison, Pairs, compare
from pipeline_steps.metrics.verification import bootstrap_verification
from pipeline_steps.study.command import run_main

Random = np.random.Generator
Draws = Callable[[Random, int], np.ndarray]


def normal(rng: Random, count: int) -> np.ndarray:
    """Standard normal values."""
    return rng.standard_normal(count)


@dataclass(frozen=True)
class Images:
    """People as points, images scattered around them.

    Attributes:
        width: dimensions of the embeddings.
        uneven: sd of the logarithm of a person's scatter.
        versus: other images of the same people, or the images among themselves.
        kin: share of people who resemble another one.
        bad: share of images scattered three times as far.
        unequal: 2 to 8 images a person.
        tail: distribution of the logarithm of scatter, in units of `uneven`.
    """

    width: int = 16
    uneven: float = 0.3
    versus: bool = False
    kin: float = 0.0
    bad: float = 0.0
    unequal: bool = False
    tail: Draws = normal

    def draw(
        self, rng: Random, people: int, scatter: float, images: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Images [n, width], other images of the same people or None, and who is who [n]."""
        counts = rng.integers(2, 9, people) if self.unequal else np.full(people, images)
        centres = rng.standard_normal((people, self.width))
        if self.kin:
            kin = np.flatnonzero(rng.random(people) < self.kin)
            source = rng.integers(0, people, len(kin))
            own = rng.standard_normal((len(kin), self.width))
            centres[kin] = centres[source] * 0.8 + 0.6 * own
        spread = np.exp(self.uneven * self.tail(rng, people))
        who = np.repeat(np.arange(people), counts)
        noise = rng.standard_normal((len(who), self.width))
        reach = scatter * spread[who] * np.where(rng.random(len(who)) < self.bad, 3.0, 1.0)
        if not self.versus:
            return centres[who] + reach[:, None] * noise, None, who
        drift = 0.4 * scatter * rng.standard_normal((people, self.width))
        first = centres[who] + drift[who] + reach[:, None] * noise
        return first, centres[who] + 0.5 * scatter * rng.standard_normal(noise.shape), who

    def compare(self, rng: Random, people: int, scatter: float, images: int) -> Comparison:
        """All pairs of one draw."""
        first, second, who = self.draw(rng, people, scatter, images)
        names = [f"{person:05d}" for person in who]
        return compare(first, names, *(() if second is None else (second, names)))

    def truth(self, scatter: float, images: int, people: int, impostors: int) -> float:
        """Error rate of `people`, impostor pairs among the first `impostors` of them."""
        first, other, who = self.draw(np.random.default_rng(77), people, scatter, images)
        first = first / np.linalg.norm(first, axis=1, keepdims=True)
        second = first
        if other is not None:
            second = other / np.linalg.norm(other, axis=1, keepdims=True)
        genuine = [(first * second).sum(axis=1)] if self.versus else []
        for step in range(1, int(np.bincount(who).max())):
            left = np.arange(len(who) - step)
            left = left[who[left] == who[left + step]]
            genuine.append((first[left] * second[left + step]).sum(axis=1))
            if self.versus:
                genuine.append((second[left] * first[left + step]).sum(axis=1))
        few = int(np.searchsorted(who, impostors))
        scores = first[:few] @ second[:few].T
        return crossing(np.concatenate(genuine), scores[who[:few, None] != who[None, :few]])


@dataclass(frozen=True)
class Scores:
    """Scores themselves, shifted by what a person brings; scatter: how far apart they are."""

    person: Draws
    noise: Draws

    def compare(self, rng: Random, people: int, scatter: float, images: int) -> Comparison:
        """All pairs of one draw."""
        own, other = self.person(rng, people), 0.5 * rng.standard_normal(people)
        first, second = np.triu_indices(people, 1)
        who = np.repeat(np.arange(people), images * (images - 1) // 2)
        a, b = np.repeat(first, images**2), np.repeat(second, images**2)
        genuine = scatter - own[who] + self.noise(rng, len(who))
        pair = 0.4 * np.repeat(self.noise(rng, len(first)), images**2)
        impostor = other[a] + other[b] + pair + self.noise(rng, len(a))
        names = tuple(str(person) for person in range(people))
        return Comparison(Pairs(genuine, who, who), Pairs(impostor, a, b), names)

    def truth(self, scatter: float, images: int, people: int, impostors: int) -> float:
        """Error rate of 60 000 people and 400 000 independent impostor pairs."""
        rng = np.random.default_rng(77)
        own = np.repeat(self.person(rng, 60_000), 6)
        genuine = scatter - own + self.noise(rng, len(own))
        others = 0.5 * rng.standard_normal((400_000, 2)).sum(axis=1)
        noise = 0.4 * self.noise(rng, len(others))
        return crossing(genuine, others + noise + self.noise(rng, len(others)))


KINDS: dict[str, Images | Scores] = {
    "std": Images(),
    "stdv": Images(versus=True),
    "goats": Images(width=32, uneven=0.6),
    "sgauss": Scores(lambda rng, n: 0.7 * rng.standard_normal(n), normal),
    "family": Images(width=24, uneven=0.15, kin=0.15),
    "badimg": Images(width=24, uneven=0.2, bad=0.08, unequal=True),
    "even": Images(width=12, uneven=0.0, versus=True),
    "expo": Images(
        width=20, uneven=0.35, versus=True, tail=lambda rng, n: rng.exponential(1, n) - 0.5
    ),
    "sgamma": Scores(lambda rng, n: 0.9 * (rng.gamma(0.6, 1, n) - 0.6), normal),
    "st3": Scores(
        lambda rng, n: 0.6 * rng.standard_normal(n), lambda rng, n: 0.7 * rng.standard_t(4, n)
    ),
    "two": Scores(
        lambda rng, n: np.where(rng.random(n) < 0.1, 2.0, -0.2) + 0.3 * rng.standard_normal(n),
        normal,
    ),
    "logn": Scores(
        lambda rng, n: 0.5 * (np.exp(0.8 * rng.standard_normal(n)) - 1.4),
        lambda rng, n: 0.8 * rng.laplace(size=n),
    ),
}


def crossing(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Equal error rate of many scores, to a fine grid of thresholds."""
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    low, high = max(genuine[0], impostor[0]), min(genuine[-1], impostor[-1])
    grid = np.linspace(low, high, 20_001)
    fnmr = np.searchsorted(genuine, grid) / len(genuine)
    fmr = 1 - np.searchsorted(impostor, grid) / len(impostor)
    at = int(np.argmin(np.abs(fnmr - fmr)))
    return float((fnmr[at] + fmr[at]) / 2)


def truth(name: str, scatter: float, images: int, people: int, *, rough: bool) -> float:
    """Error rate of the population; with kin it depends on how many people are drawn."""
    kind = KINDS[name]
    if name != "family":
        return kind.truth(scatter, images, *((5000, 250) if rough else (20_000, 700)))
    rng = np.random.default_rng(78)
    draws = max(40, (200 if rough else 6000) * 8 // people)
    found = [kind.compare(rng, people, scatter, images) for _ in range(draws)]
    genuine = np.concatenate([comparison.genuine.scores for comparison in found])
    return crossing(genuine, np.concatenate([comparison.impostor.scores for comparison in found]))


def scatter_for(name: str, rate: float, images: int, people: int) -> float:
    """The scatter at which a population has this error rate."""
    rising = isinstance(KINDS[name], Images)
    low, high = (0.05, 4.0) if rising else (0.0, 14.0)
    for _ in range(11):
        middle = (low + high) / 2
        too_low = truth(name, middle, images, people, rough=True) < rate
        low, high = (middle, high) if too_low == rising else (low, middle)
    return (low + high) / 2


def coverage(name: str, people: int, rate: float, images: int, draws: int) -> str:
    """One row of the table."""
    scatter = scatter_for(name, rate, images, people)
    true = truth(name, scatter, images, people, rough=False)
    weights = np.vstack([np.ones((1, people), int), 1 - np.eye(people, dtype=int)])
    held = below = 0
    widths = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, people, zlib.crc32(name.encode())])
        comparison = KINDS[name].compare(rng, people, scatter, images)
        rates = bootstrap_verification(comparison, weights).eer
        pairs = len(comparison.genuine.scores)
        interval = error_rate_interval(float(rates[0]), rates[1:], people, pairs)
        held += interval.low <= true <= interval.high
        below += interval.high < true
        widths.append(interval.high - interval.low)
    shares = f"{100 * held / draws:6.1f}  {100 * below / draws:6.1f}"
    return f"{name:8} {people:6}  {images:6}  {true:.4f}  {shares}  {np.median(widths) / true:6.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--images", type=int, default=4, help="of each person")
    parser.add_argument("--people", type=int, nargs="+", default=[8, 20, 50])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args(argv)
    print("kind     people  images   truth   held %  below %  width / truth")
    for name in arguments.kinds:
        for people in arguments.people:
            for rate in arguments.rates:
                row = coverage(name, people, rate, arguments.images, arguments.draws)
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
