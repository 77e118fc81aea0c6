"""The photographs that the embedded weights are trained on, rendered by all cores, kept in files.

Beside each lies its face as the study cuts it out, aligned to the template or a detector's box
stretched; both follow the renderer's own landmarks, with a detector's scatter. The recogniser must
know both: it judges aligned crops in the evaluation and stretched boxes inside the identity losses.

A file holds a few people of one population. It follows from (seed, population, numbers) alone, so
that more people only add files, and is written whole or not at all, so that rendering goes on where
it ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.rendering.population import person, wild_nuisance
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator

PEOPLE_PER_FILE = 10
RENDER_SIZE = 128  # pixels; pictures are half of it
CROP_SIZE = 112  # pixels
SCATTER = 0.045  # of the interpupillary distance, about what the detector shows on renders
# MTCNN's box on frontal renders, in eye-to-mouth distances: width, height, centre below the eyes.
BOX_WIDTH, BOX_HEIGHT, BOX_DROP = 1.95, 2.75, 0.33
LOW_RESOLUTION = 0.6  # share that comes from the image at half size, as samples do
STRETCHED = 0.35  # share that is cut by box; the others are aligned
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Photographs:
    """Which photographs: `each` of members 0 ... `people` - 1 of a population.

    Attributes:
        seed: of the population and its photographs.
        population: a name, see population.py.
        people: a multiple of PEOPLE_PER_FILE.
        each: photographs of each, in the wild.
    """

    seed: int
    population: str
    people: int
    each: int

    def files(self, folder: Path) -> dict[Path, range]:
        """Files of the photographs below `folder`, and whom each shows."""
        stem = f"{self.population}-{self.seed}-{self.each}"
        return {
            folder / f"{stem}-{first:06d}.safetensors": range(first, first + PEOPLE_PER_FILE)
            for first in range(0, self.people, PEOPLE_PER_FILE)
        }


def lightness(rgb: Sequence[float]) -> float:
    """CIE lightness L*, over 100, of a linear RGB colour in [0, 1] with sRGB's primaries."""
    y = float(np.dot(rgb, (0.2126, 0.7152, 0.0722)))
    return 1.16 * (y ** (1 / 3) if y > (6 / 29) ** 3 else y / (3 * (6 / 29) ** 2) + 4 / 29) - 0.16


def photograph_people(what: Photographs, numbers: range) -> dict[str, np.ndarray]:
    """Render the photographs of some people, in the order of the people.

    Returns:
        n rows each of
        pictures uint8 [n, 64, 64, 3] RGB; crops uint8 [n, 112, 112, 3] RGB, the face as the study
        cuts it out; landmarks float32 [n, 5, 2], pixels of the pictures; identity, expression,
        place int64 (the latter two count in EXPRESSIONS and PLACES); male int64, 0 or 1; age in
        [0, 1], yaw, pitch, roll in degrees, skin (lightness of its colour, in [0, 1]), float32.
    """
    rows: list[dict[str, Any]] = []
    for number in numbers:
        who = person(what.seed, what.population, number)
        for index in range(what.each):
            how = wild_nuisance(what.seed, what.population, number, index)
            photo = who.photograph(how, RENDER_SIZE, supersample=1)
            rng = numpy_generator(what.seed, "crop", what.population, number, index)
            rows.append(
                {
                    "pictures": halved(photo.image),
                    "crops": face_crop(photo.image, photo.landmarks, rng),
                    "landmarks": ((photo.landmarks + 0.5) / 2 - 0.5).astype(np.float32),
                    "identity": np.int64(number),
                    "expression": np.int64(EXPRESSIONS.index(how.expression)),
                    "place": np.int64(PLACES.index(how.place)),
                    "male": np.int64(who.identity.gender == "male"),
                    "age": np.float32(how.age),
                    **{n: np.float32(getattr(how, n)) for n in ("yaw", "pitch", "roll")},
                    "skin": np.float32(lightness(who.identity.skin)),
                }
            )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def halved(image: np.ndarray) -> np.ndarray:
    """An image uint8 [2h, 2w, 3] at half its size, box-averaged."""
    return np.asarray(Image.fromarray(image).reduce(2))


def stretched_box(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut out about the box that a detector would find, and stretch it: see `face_crop`."""
    eyes, mouth = marks[:2].mean(0), marks[3:].mean(0)
    drop = max(float(np.linalg.norm(mouth - eyes)), 0.08 * image.shape[1])
    w, h = drop * np.array([BOX_WIDTH, BOX_HEIGHT]) * (1 + rng.normal(0, 0.07, 2))
    x = 0.5 * (eyes[0] + mouth[0]) + rng.normal(0, 0.06 * w)
    y = eyes[1] + BOX_DROP * drop + rng.normal(0, 0.05 * h)
    corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    limit = image.shape[1]
    left, top, right, bottom = (int(np.clip(round(c), 0, limit)) for c in corners)
    face = Image.fromarray(image).crop((left, top, max(right, left + 8), max(bottom, top + 8)))
    return np.asarray(face.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR))


def face_crop(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut the face out of a photograph.

    Args:
        image: uint8 [s, s, 3] RGB, s even.
        marks: true landmarks [5, 2], pixels.
        rng: of the way and its scatter.

    Returns:
        uint8 [112, 112, 3].
    """
    marks = marks.astype(np.float64)
    if rng.random() < LOW_RESOLUTION:
        image, marks = halved(image), (marks + 0.5) / 2 - 0.5
    if rng.random() < STRETCHED:
        return stretched_box(image, marks, rng)
    span = max(float(np.linalg.norm(marks[0] - marks[1])), 0.12 * image.shape[1])
    common = rng.normal(0, 0.5 * SCATTER, 2)
    return align_to_template(image, marks + span * (common + rng.normal(0, SCATTER, (5, 2))))


def render(folder: Path, what: Photographs, *, workers: int, over: Callable[[], bool]) -> bool:
    """Render what is missing below `folder` in so many processes; whether all is there.

    `over` is asked between files; once it is true no further file is begun.
    """
    missing = {path: numbers for path, numbers in what.files(folder).items() if not path.exists()}
    if not missing or over():
        return not missing
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # of the workers: they are as many as cores
    spawn = get_context("spawn")  # a fork of a process with threads may hang
    try:
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_ignore_ctrl_c) as pool:
            made = [pool.submit(_write, path, numbers, what) for path, numbers in missing.items()]
            title = f"rendering {what.population}"
            for file in progress(as_completed(made), description=title, total=len(made)):
                file.result()
                if over():
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return all(path.exists() for path in missing)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the queue


def _write(path: Path, numbers: range, what: Photographs) -> None:
    save_tensors(path, photograph_people(what, numbers))


def load(folder: Path, what: Photographs, *names: str) -> dict[str, np.ndarray]:
    """Columns of rendered photographs, [people * each, ...], see `photograph_people`."""
    from safetensors import safe_open

    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in what.files(folder):
        with safe_open(path, framework="numpy") as file:
            for name in names:
                parts[name].append(file.get_tensor(name))
    return {name: np.concatenate(columns) for name, columns in parts.items()}
