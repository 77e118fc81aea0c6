"""Populations of rendered people that never share an identity, and the photographs taken of them.

A population is a name; identity k of population p is drawn from (seed, p, k), so populations cannot
overlap, and the pretraining of the embedded weights never sees a person of the study.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
VALIDATION = "validation"
BENCHMARKS = ("plain", "cross_age", "cross_pose", "frontal_profile", "age_gap", VALIDATION)
CAMERAS, POSITIONS = (1, 2, 3), tuple(range(9))


@dataclass(frozen=True)
class Person:
    """One member of a population; `texture_seed` is the grain of skin and hair."""

    population: str
    number: int
    identity: Identity
    texture_seed: int

    def photograph(self, nuisance: Nuisance, size: int, supersample: int = 2) -> Photograph:
        """Photograph this person.

        Args:
            nuisance: the circumstances.
            size: side of the square image, pixels.
            supersample: rays per pixel and axis.
        """
        return render(
            self.identity,
            nuisance,
            size=size,
            texture_seed=self.texture_seed,
            supersample=supersample,
        )


def person(seed: int, population: str, number: int) -> Person:
    """Member `number` of a population; the same arguments always give the same person."""
    return Person(
        population=population,
        number=number,
        identity=sample_identity(seed, population, number),
        texture_seed=seed_for(seed, "texture", population, number) % 2**32,
    )


def wild_nuisance(
    seed: int, population: str, number: int, index: int, *, max_yaw: float = 45.0, **fixed: str
) -> Nuisance:
    """Circumstances of photograph `index` of a person in the wild.

    Args:
        seed: of the study.
        population, number: who.
        index: which of their photographs.
        max_yaw: degrees either way.
        fixed: place or expression that is not drawn.
    """
    return in_the_wild(
        numpy_generator(seed, "nuisance", population, number, index), max_yaw=max_yaw, **fixed
    )


def laboratory_session(seed: int, number: int) -> Iterator[tuple[int, int, Nuisance]]:
    """(camera, position, circumstances) of the 27 photographs of one participant's session."""
    rng = numpy_generator(seed, "session", CONSENTED, number)
    shirt = random_shirt(rng)
    for camera in CAMERAS:
        for position in POSITIONS:
            yield (
                camera,
                position,
                laboratory_capture(rng, camera=camera, position=position, shirt=shirt),
            )


def render_wild_set(
    seed: int, population: str, numbers: range, images_each: int, size: int, supersample: int
) -> tuple[np.ndarray, np.ndarray, list[Nuisance]]:
    """Photographs of some members of a population in the wild, person by person.

    Args:
        seed: of the study.
        population: whose members.
        numbers: which members.
        images_each: photographs of each.
        size: side of an image, pixels.
        supersample: rays per pixel and axis.

    Returns:
        images uint8 [n, size, size, 3], landmarks float32 [n, 5, 2] in pixels, and circumstances.
    """
    images, landmarks, circumstances = [], [], []
    for number in numbers:
        who = person(seed, population, number)
        for index in range(images_each):
            nuisance = wild_nuisance(seed, population, number, index)
            photo = who.photograph(nuisance, size, supersample)
            images.append(photo.image)
            landmarks.append(photo.landmarks)
            circumstances.append(nuisance)
    return np.stack(images), np.stack(landmarks).astype(np.float32), circumstances
