"""Five verification benchmarks of rendered people, each in a real benchmark's role, and a sixth.

plain (LFW), cross_age (CALFW), cross_pose (CPLFW), frontal_profile (CFP-FP), age_gap (AgeDB-30);
validation, of any pose and age, chooses the epoch of a recogniser and is no test.
A benchmark is a list of pair specifications: who, in which pose, at what age. The circumstances of
a pair are drawn without regard to whether both images show one person, so that they tell nothing
about it. Folds are consecutive and share no person; within a fold the pairs of one person come
first, as in LFW's own list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline_steps.seeds import numpy_generator, seed_for

N_FOLDS = 10
MAX_YAW = 45.0  # degrees; beyond it face detectors begin to miss
PROFILE_YAW = (40.0, 60.0)  # degrees
FRONTAL_YAW = 8.0  # degrees
CROSS_POSE_GAP = 35.0  # degrees between the two images, at least
CROSS_AGE_GAP = 0.25  # of the age range, at least
AGE_GAP = 0.5  # of the age range, exactly; AgeDB-30's 30 years of about 60

# yaw, pitch, roll in degrees, age in [0, 1], seed of everything else in the picture.
Nuisance = dict[str, float | int]
Render = Callable[[int, Nuisance], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """One pair: identity seeds, circumstances, and whether it is one person."""

    identity_a: int
    identity_b: int
    nuisance_a: Nuisance
    nuisance_b: Nuisance
    same: bool


def _small_yaws(rng: np.random.Generator) -> tuple[float, float]:
    a, b = np.clip(rng.normal(0.0, 12.0, 2), -30.0, 30.0)
    return float(a), float(b)


def _distant_yaws(rng: np.random.Generator) -> tuple[float, float]:
    a = float(rng.uniform(-MAX_YAW, MAX_YAW - CROSS_POSE_GAP))
    b = float(rng.uniform(a + CROSS_POSE_GAP, MAX_YAW))
    return (a, b) if rng.random() < 0.5 else (b, a)


def _frontal_and_profile_yaws(rng: np.random.Generator) -> tuple[float, float]:
    side = 1.0 if rng.random() < 0.5 else -1.0
    return float(rng.uniform(-FRONTAL_YAW, FRONTAL_YAW)), side * float(rng.uniform(*PROFILE_YAW))


def _similar_ages(rng: np.random.Generator) -> tuple[float, float]:
    centre = rng.uniform(0.05, 0.95)
    a, b = centre + rng.uniform(-0.05, 0.05, 2)
    return float(a), float(b)


def _distant_ages(rng: np.random.Generator) -> tuple[float, float]:
    young = float(rng.uniform(0.0, 1.0 - CROSS_AGE_GAP))
    old = float(rng.uniform(young + CROSS_AGE_GAP, 1.0))
    return (young, old) if rng.random() < 0.5 else (old, young)


def _ages_apart(rng: np.random.Generator) -> tuple[float, float]:
    young = float(rng.uniform(0.0, 1.0 - AGE_GAP))
    return (young, young + AGE_GAP) if rng.random() < 0.5 else (young + AGE_GAP, young)


def _any_yaws(rng: np.random.Generator) -> tuple[float, float]:
    a, b = rng.uniform(-MAX_YAW, MAX_YAW, 2)
    return float(a), float(b)


def _any_ages(rng: np.random.Generator) -> tuple[float, float]:
    a, b = rng.uniform(0.0, 1.0, 2)
    return float(a), float(b)


Draw = Callable[[np.random.Generator], tuple[float, float]]

# Name -> how the yaws and the ages of a pair's two images are drawn.
BENCHMARKS: dict[str, tuple[Draw, Draw]] = {
    "plain": (_small_yaws, _similar_ages),
    "cross_age": (_small_yaws, _distant_ages),
    "cross_pose": (_distant_yaws, _similar_ages),
    "frontal_profile": (_frontal_and_profile_yaws, _similar_ages),
    "age_gap": (_small_yaws, _ages_apart),
    "validation": (_any_yaws, _any_ages),
}


def build_pairs(name: str, n_pairs: int, seed: int) -> list[Pair]:
    """The pairs of one benchmark.

    Args:
        name: a key of BENCHMARKS.
        n_pairs: a multiple of 20, at least 40: ten folds, in each as many pairs of one person as
            of two.
        seed: study seed; each benchmark has people of its own, see identity_seeds.

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
    people = identity_seeds(name, n_pairs, seed)
    per_fold = n_pairs // (2 * N_FOLDS)
    pairs: list[Pair] = []
    for fold in range(N_FOLDS):
        group = people[fold * per_fold : (fold + 1) * per_fold]
        rng = numpy_generator(seed, "benchmark", name, "impostors", fold)
        shift = int(rng.integers(1, per_fold))  # nobody is compared with himself
        couples = [(a, a) for a in group]
        couples += [(a, group[(i + shift) % per_fold]) for i, a in enumerate(group)]
        for a, b in couples:
            draw = numpy_generator(seed, "benchmark", name, "pair", len(pairs))
            yaws, ages = draw_yaws(draw), draw_ages(draw)
            first, second = (_nuisance(yaws[i], ages[i], draw) for i in (0, 1))
            pairs.append(Pair(a, b, first, second, same=a == b))
    return pairs


def identity_seeds(name: str, n_pairs: int, seed: int) -> list[int]:
    """Seeds of the people of one benchmark, n_pairs / 2 of them, in the order of their folds."""
    return [seed_for(seed, "benchmark", name, "identity", i) for i in range(n_pairs // 2)]


def render_pairs(pairs: list[Pair], render: Render) -> tuple[np.ndarray, np.ndarray]:
    """Images and flags in the order of a `.bin` file.

    Args:
        pairs: specifications.
        render: identity seed and circumstances -> aligned uint8 [112, 112, 3], RGB.

    Returns:
        images uint8 [2n, 112, 112, 3]; same bool [n].
    """
    images = [
        render(identity, nuisance)
        for pair in pairs
        for identity, nuisance in (
            (pair.identity_a, pair.nuisance_a),
            (pair.identity_b, pair.nuisance_b),
        )
    ]
    return np.stack(images), np.array([pair.same for pair in pairs])


def _nuisance(yaw: float, age: float, rng: np.random.Generator) -> Nuisance:
    pitch, roll = np.clip(rng.normal(0.0, 5.0, 2), -15.0, 15.0)
    return {
        "yaw": yaw,
        "pitch": float(pitch),
        "roll": float(roll),
        "age": age,
        "seed": int(rng.integers(2**31)),
    }
