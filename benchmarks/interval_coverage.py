"""How often 95 % intervals hold the truth: python benchmarks/interval_coverage.py

People are drawn from a known population, images of each are drawn around the person, and the
interval of each draw is held against the population's number. People differ in how much their
images scatter, so that some are confused more often than others, as in life.

    eer, fdr   error rates of images among themselves and against other images of the same people;
               the truth is that of thousands of people
    fd         Fréchet distance between two sets of images of the same people; the truth is the mean
               over draws of these sizes, the distance being biased by size

Small error rates in other kinds of populations: eer_coverage.py; accuracies: accuracy_coverage.py.

Prints a table of coverages with 95 % intervals, and adds it to --out, a part for each number.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from measured import Row, add, proportion, table

from pipeline_steps.metrics.frechet import frechet_distance, frechet_interval
from pipeline_steps.metrics.intervals import Interval
from pipeline_steps.metrics.verification import ErrorRates, identity_error_rates
from pipeline_steps.runtime.logs import progress
from pipeline_steps.study.command import run_main

DIMENSIONS = 16
UNEVEN = 0.3  # sd of the logarithm of a person's scatter
POPULATION = 3000  # people behind a true error rate
DRAWS = 500  # draws behind a true mean


@dataclass(frozen=True)
class Case:
    """One situation.

    Attributes:
        measure: "eer", "fdr" or "fd".
        people: identities in a draw.
        scatter: of a person's images, in units of the spread between people.
        versus: other images of the same people (True) or the images among themselves.
        images: per person.
    """

    measure: str
    people: int
    scatter: float = 0.8
    versus: bool = False
    images: int = 6

    def __str__(self) -> str:
        kind = ", versus other images" if self.versus and self.measure != "fd" else ""
        return f"{self.measure}, {self.people} people, scatter {self.scatter:g}{kind}"


QUICK = {
    "eer": Case("eer", 12),
    "fdr": Case("fdr", 12),
    "fd": Case("fd", 12),
}


def images_of(
    case: Case, people: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images of people as embeddings, other images of the same people, and who is who."""
    shape = (people * case.images, DIMENSIONS)
    people_at = np.repeat(rng.standard_normal((people, DIMENSIONS)), case.images, axis=0)
    scatter = case.scatter * np.exp(UNEVEN * rng.standard_normal(people))
    drift = 0.4 * case.scatter * rng.standard_normal((people, DIMENSIONS))
    images = people_at + np.repeat(drift, case.images, axis=0)
    images = images + np.repeat(scatter, case.images)[:, None] * rng.standard_normal(shape)
    others = people_at + 0.5 * case.scatter * rng.standard_normal(shape)
    return images, others, [f"ID_{i}" for i in range(people) for _ in range(case.images)]


def draw(case: Case, rng: np.random.Generator) -> tuple[float, Interval]:
    """An estimate and its interval."""
    if case.measure == "fd":
        images, others, names = images_of(case, case.people, rng)
        interval = frechet_interval(others, images, names, names, groups=200, rng=rng)
        return frechet_distance(others, images), interval
    rates = rates_of(case, case.people, rng)
    limits = (getattr(rates, f"{case.measure}_{limit}") for limit in ("low", "high"))
    return float(getattr(rates, case.measure)), Interval(*limits)


def rates_of(case: Case, people: int, rng: np.random.Generator) -> ErrorRates:
    """Error rates of one draw."""
    images, others, names = images_of(case, people, rng)
    gallery = (others, names) if case.versus else ()
    return identity_error_rates(images, names, *gallery, rng=rng)


@cache
def population(case: Case) -> ErrorRates:
    """Error rates of a whole population."""
    return rates_of(case, POPULATION, np.random.default_rng(1))


@cache
def truth(case: Case) -> float:
    """The number that the interval is about."""
    rng = np.random.default_rng([1, zlib.crc32(str(case).encode())])
    if case.measure in ("eer", "fdr"):
        return float(getattr(population(replace(case, measure="", people=0)), case.measure))
    values = []
    for _ in range(DRAWS):
        images, others, _names = images_of(case, case.people, rng)
        values.append(frechet_distance(others, images))
    return float(np.mean(values))


def coverage(case: Case, trials: int, seed: int) -> tuple[int, int]:
    """In how many of `trials` draws the interval holds the truth."""
    true = truth(case)
    covered = 0
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial, zlib.crc32(str(case).encode())])
        _, interval = draw(case, rng)
        covered += bool(interval.low <= true <= interval.high)
    return covered, trials


def cases(measure: str, people: Sequence[int]) -> Iterator[Case]:
    """All situations of one number."""
    for count in people:
        if measure == "fd":
            yield Case("fd", count, 0.8, True)
            continue
        for versus in (False, True):
            for scatter in (0.45, 0.8, 1.2):
                yield Case(measure, count, scatter, versus)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, help="draws per situation")
    parser.add_argument("--measures", nargs="+", choices=list(QUICK), default=list(QUICK))
    parser.add_argument("--people", type=int, nargs="+", default=[8, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/metrics.json"))
    arguments = parser.parse_args(argv)
    for measure in arguments.measures:
        rows: list[Row] = []
        chosen = list(cases(measure, arguments.people))
        for case in progress(chosen, description=f"coverage, {measure}", unit="case"):
            covered, trials = coverage(case, arguments.trials, arguments.seed)
            rows.append(proportion(f"{case} (truth {truth(case):.4g})", covered, trials))
        add(arguments.out, f"interval_coverage_{measure}", rows)
        print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
