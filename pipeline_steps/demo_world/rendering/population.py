"""Populations of rendered people that never share an identity, and the photographs taken of them.

A population is a name; identity k of population p is drawn from (seed, p, k), so populations cannot
overlap, and the pretraining of the embedded weights never sees a person of the study.

Five verification benchmarks have populations of their own, each in a real benchmark's role: plain
(LFW), cross_age (CALFW), cross_pose (CPLFW), frontal_profile (CFP-FP), age_gap (AgeDB-30). A sixth,
validation, of any pose and age, chooses the epoch of a recogniser and is no test. The circumstances
of a pair are drawn without regard to whether both images show one person, so that they tell nothing
about it. Folds are consecutive and share no person; within a fold the pairs of one person come
first, as in LFW's own list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline_steps.demo_world.rendering.parameters import (
    Identity,
    Nuisance,
    in_the_wild,
    laboratory_capture,
    random_shirt,
    sample_identity,
)
from pipeline_steps.demo_world.rendering.renderer import Photograph, render
from pipeline_steps.seeds import numpy_generator, seed_for

PRETRAINING, CONSENTED, WILD, HELD_OUT = "pretraining", "consented", "wild", "held-out"
CAMERAS, POSITIONS = (1, 2, 3), tuple(range(9))


@dataclass(frozen=True)
class Person:
    """One member of a population; `texture_seed` is the grain of skin and hair."""

    identity: Identity
    texture_seed: int

    def photograph(self, nuisance: Nuisance, size: int, supersample: int = 2) -> Photograph:
        """Photograph this person, see `renderer.render`."""
        how = {"size": size, "texture_seed": self.texture_seed, "supersample": supersample}
        return render(self.identity, nuisance, **how)


def person(seed: int, population: str, number: int) -> Person:
    """Member `number` of a population; the same arguments always give the same person."""
    return Person(
        sample_identity(seed, population, number),
        seed_for(seed, "texture", population, number) % 2**32,
    )


def wild_nuisance(
    seed: int, population: str, number: int, index: int, *, max_yaw: float = 45.0, **fixed: str
) -> Nuisance:
    """Circumstances of photograph `index` of a person in the wild, see `in_the_wild`."""
    rng = numpy_generator(seed, "nuisance", population, number, index)
    return in_the_wild(rng, max_yaw=max_yaw, **fixed)


def laboratory_session(seed: int, number: int) -> Iterator[tuple[int, int, Nuisance]]:
    """(camera, position, circumstances) of the 27 photographs of one participant's session."""
    rng = numpy_generator(seed, "session", CONSENTED, number)
    shirt = random_shirt(rng)
    for camera in CAMERAS:
        for position in POSITIONS:
            how = laboratory_capture(rng, camera=camera, position=position, shirt=shirt)
            yield camera, position, how


# Benchmarks ---------------------------------------------------------------------------------------

VALIDATION = "validation"
N_FOLDS = 10
MAX_YAW = 45.0  # degrees; beyond it face detectors begin to miss
PROFILE_YAW = (40.0, 60.0)  # degrees
FRONTAL_YAW = 8.0  # degrees
CROSS_POSE_GAP = 35.0  # degrees between the two images, at least
CROSS_AGE_GAP = 0.25  # of the age range, at least
AGE_GAP = 0.5  # of the age range, exactly; AgeDB-30's 30 years of about 60


@dataclass(frozen=True)
class Pair:
    """One pair: the numbers of two people in the benchmark's population, and circumstances."""

    people: tuple[int, int]
    circumstances: tuple[Nuisance, Nuisance]

    @property
    def same(self) -> bool:
        """Whether it is one person."""
        return self.people[0] == self.people[1]


Two = tuple[float, float]
Draw = Callable[[np.random.Generator], Two]


def _small_yaws(rng: np.random.Generator) -> Two:
    a, b = np.clip(rng.normal(0.0, 12.0, 2), -30.0, 30.0)
    return float(a), float(b)


def _frontal_and_profile_yaws(rng: np.random.Generator) -> Two:
    side = 1.0 if rng.random() < 0.5 else -1.0
    return float(rng.uniform(-FRONTAL_YAW, FRONTAL_YAW)), side * float(rng.uniform(*PROFILE_YAW))


def _similar_ages(rng: np.random.Generator) -> Two:
    centre = rng.uniform(0.05, 0.95)
    a, b = centre + rng.uniform(-0.05, 0.05, 2)
    return float(a), float(b)


def _ages_apart(rng: np.random.Generator) -> Two:
    young = float(rng.uniform(0.0, 1.0 - AGE_GAP))
    return (young, young + AGE_GAP) if rng.random() < 0.5 else (young + AGE_GAP, young)


def _distant(low: float, high: float, gap: float) -> Draw:
    """Two values at least `gap` apart, in any order."""

    def draw(rng: np.random.Generator) -> Two:
        less = float(rng.uniform(low, high - gap))
        more = float(rng.uniform(less + gap, high))
        return (less, more) if rng.random() < 0.5 else (more, less)

    return draw


def _any(low: float, high: float) -> Draw:
    def draw(rng: np.random.Generator) -> Two:
        a, b = rng.uniform(low, high, 2)
        return float(a), float(b)

    return draw


# Name -> how the yaws and the ages of a pair's two images are drawn.
BENCHMARKS: dict[str, tuple[Draw, Draw]] = {
    "plain": (_small_yaws, _similar_ages),
    "cross_age": (_small_yaws, _distant(0.0, 1.0, CROSS_AGE_GAP)),
    "cross_pose": (_distant(-MAX_YAW, MAX_YAW, CROSS_POSE_GAP), _similar_ages),
    "frontal_profile": (_frontal_and_profile_yaws, _similar_ages),
    "age_gap": (_small_yaws, _ages_apart),
    VALIDATION: (_any(-MAX_YAW, MAX_YAW), _any(0.0, 1.0)),
}


def build_pairs(name: str, n_pairs: int, seed: int) -> list[Pair]:
    """The pairs of one benchmark.

    Args:
        name: a key of BENCHMARKS.
        n_pairs: a multiple of 20, at least 40: ten folds, in each as many pairs of one person as
            of two.
        seed: of the world; each benchmark has people of its own.

    Raises:
        ValueError: unknown name or unfit number of pairs.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose one of {sorted(BENCHMARKS)}")
    if n_pairs < 4 * N_FOLDS or n_pairs % (2 * N_FOLDS):
        raise ValueError(
            f"n_pairs must be a multiple of {2 * N_FOLDS}, at least {4 * N_FOLDS}, got {n_pairs}"
        )
    draw_yaws, draw_ages = BENCHMARKS[name]
    people = [seed_for(seed, "benchmark", name, "identity", i) for i in range(n_pairs // 2)]
    per_fold = n_pairs // (2 * N_FOLDS)
    pairs: list[Pair] = []
    for fold in range(N_FOLDS):
        group = people[fold * per_fold : (fold + 1) * per_fold]
        rng = numpy_generator(seed, "benchmark", name, "impostors", fold)
        shift = int(rng.integers(1, per_fold))  # nobody is compared with himself
        couples = [(a, a) for a in group]
        couples += [(a, group[(i + shift) % per_fold]) for i, a in enumerate(group)]
        for couple in couples:
            draw = numpy_generator(seed, "benchmark", name, "pair", len(pairs))
            yaws, ages = draw_yaws(draw), draw_ages(draw)
            first, second = (_nuisance(yaws[i], ages[i], draw) for i in (0, 1))
            pairs.append(Pair(couple, (first, second)))
    return pairs


def _nuisance(yaw: float, age: float, rng: np.random.Generator) -> Nuisance:
    pitch, roll = np.clip(rng.normal(0.0, 5.0, 2), -15.0, 15.0)
    others = in_the_wild(np.random.default_rng(int(rng.integers(2**31))))
    return replace(others, yaw=yaw, pitch=float(pitch), roll=float(roll), age=age)
