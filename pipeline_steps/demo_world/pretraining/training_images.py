"""The photographs the embedded weights are trained on: rendered once, kept as memory-mapped arrays.

Each chunk of identities is one job of a process pool; the result depends on the seed alone.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_steps.demo_world.rendering.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.rendering.population import person, render_wild_set
from pipeline_steps.runtime.logs import progress

CHUNK = 25


@dataclass(frozen=True)
class TrainingImages:
    """Photographs and what is known of them, n of each.

    Attributes:
        images: uint8 [n, s, s, 3] RGB.
        landmarks: float32 [n, 5, 2], pixels.
        identity: int64 [n], number within the population.
        expression, place: int64 [n], indices into EXPRESSIONS and PLACES.
        yaw: float32 [n], degrees.
        male: bool [n].
    """

    images: np.ndarray
    landmarks: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    place: np.ndarray
    yaw: np.ndarray
    male: np.ndarray


def _chunk(job: tuple[int, str, int, int, int, int]) -> tuple[np.ndarray, ...]:
    seed, population, first, count, each, size = job
    images, landmarks, how = render_wild_set(
        seed, population, range(first, first + count), each, size, 1
    )
    male = [
        person(seed, population, k).identity.gender == "male" for k in range(first, first + count)
    ]
    return (
        images,
        landmarks,
        np.repeat(np.arange(first, first + count), each),
        np.array([EXPRESSIONS.index(n.expression) for n in how]),
        np.array([PLACES.index(n.place) for n in how]),
        np.array([n.yaw for n in how], np.float32),
        np.repeat(np.array(male), each),
    )


def load_or_render(
    folder: Path,
    *,
    seed: int,
    population: str,
    identities: int,
    images_each: int,
    size: int,
    workers: int,
) -> TrainingImages:
    """Open arrays, rendering them first when they are not there for exactly these arguments.

    Args:
        folder: of the arrays; `made_of.json` in it says what they are.
        seed: of the population and its photographs.
        population: a name, see population.py.
        identities: its members 0 ... identities - 1.
        images_each: photographs of each, in the wild.
        size: side of an image, pixels.
        workers: processes; changes no image.
    """
    asked = {
        "seed": seed,
        "population": population,
        "identities": identities,
        "each": images_each,
        "size": size,
    }
    note = folder / "made_of.json"
    names = ("images", "landmarks", "identity", "expression", "place", "yaw", "male")
    if not (note.exists() and json.loads(note.read_text()) == asked):
        folder.mkdir(parents=True, exist_ok=True)
        n = identities * images_each
        images = np.lib.format.open_memmap(
            folder / "images.npy", "w+", np.uint8, (n, size, size, 3)
        )
        jobs = [
            (seed, population, first, min(CHUNK, identities - first), images_each, size)
            for first in range(0, identities, CHUNK)
        ]
        rest: list[tuple[np.ndarray, ...]] = []
        with ProcessPoolExecutor(workers) as pool:
            for job, made in zip(
                jobs,
                progress(pool.map(_chunk, jobs), description="rendering", total=len(jobs)),
                strict=True,
            ):
                images[job[2] * images_each : (job[2] + job[3]) * images_each] = made[0]
                rest.append(made[1:])
        images.flush()
        for name, column in zip(names[1:], zip(*rest, strict=True), strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(column), allow_pickle=False)
        note.write_text(json.dumps(asked))
    return TrainingImages(
        **{k: np.load(folder / f"{k}.npy", mmap_mode="r", allow_pickle=False) for k in names}
    )
