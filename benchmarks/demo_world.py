"""Measure the embedded world and its weights: python benchmarks/demo_world.py

    renderer     does MTCNN find rendered faces, and how far from the truth are its landmarks
    autoencoder  signal-to-noise ratio of decoded renders: all, of dark faces, at the eyes
    looks        similarity to a person of whom only skin, hair, glasses or shape is another's
    recognisers  equal error rate of embedded recognisers on people they were not trained on

and of a study named by --study:

    faces        does MTCNN find a face in its images, and in those of its worst person
    prompts      do prompts steer place and expression, as the attribute network reads them
    skin         colour of cheeks in images against their person's photographs
    identity     its identity table

Prints a table with 95 % intervals and adds the same rows to --out; parts that are not measured this
time stay in that file as they were. A part whose weights or study are missing says so and is left
out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import demo_study
import numpy as np
from measured import REPLICATES, Row, add, mean, proportion, table

from pipeline_steps.demo_world.pretraining.images import halved
from pipeline_steps.demo_world.rendering.parameters import Nuisance
from pipeline_steps.demo_world.rendering.population import HELD_OUT, person, wild_nuisance
from pipeline_steps.demo_world.rendering.renderer import Photograph
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.command import run_main

if TYPE_CHECKING:
    from pipeline_steps.faces.recogniser import Recogniser
    from pipeline_steps.io.weights import Weights

BATCH = 32
LANDMARK_YAW = 30.0  # degrees; up to here landmarks are held against the truth
RENDER_SIZE, FACE_SIZE, SAMPLE_SIZE = 256, 128, 64  # pixels
EMBEDDED = "resources/demo_world/"
# What counts as one thing of a person's looks: fields of an identity.
LOOKS = {
    "skin": ("skin", "lips", "freckles"),
    "hair": ("hair", "brow", "hair_style", "hairline", "parting", "beard"),
    "glasses": (),
    "shape": ("shape",),
}


@dataclass(frozen=True)
class Task:
    """What to measure on, and how much of it."""

    seed: int
    renders: int
    people: int
    photographs: int
    workers: int
    study: Path | None
    models: Path
    autoencoder: Path | None = None

    def study_folder(self) -> Path:
        """The study's folder. Raises StepError where none is named."""
        if self.study is None:
            raise StepError("no study to measure: name its folder by --study")
        return self.study

    def weights(self, name: str) -> Weights:
        """An entry of the weights registry, whose file is there."""
        from pipeline_steps.io.weights import locate
        from pipeline_steps.study.registry import pick, read_models

        entry = pick(read_models(self.models), name, "benchmark")
        locate(entry)
        return entry


# Rendering ----------------------------------------------------------------------------------------


def photograph(who_and_index: tuple[int, int], *, seed: int, size: int) -> Photograph:
    """Photograph `index` of member `number` of the held-out population, up to 45 degrees of yaw."""
    number, index = who_and_index
    nuisance = held_out_nuisance(seed, number, index)
    return person(seed, HELD_OUT, number).photograph(nuisance, size, supersample=1)


def held_out_nuisance(seed: int, number: int, index: int) -> Nuisance:
    """Circumstances of that photograph."""
    return wild_nuisance(seed, HELD_OUT, number, index)


def rendered(
    task: Task, numbers: range, photographs: int, size: int, what: str
) -> Iterator[Photograph]:
    """Photographs, person by person; `workers` processes change no image."""
    jobs = [(number, index) for number in numbers for index in range(photographs)]
    render = partial(photograph, seed=task.seed, size=size)
    with ProcessPoolExecutor(task.workers, mp_context=get_context("spawn")) as pool:
        made = pool.map(render, jobs, chunksize=8)
        yield from progress(made, description=what, total=len(jobs), unit="image")


def batches(items: Iterable[Photograph]) -> Iterator[list[Photograph]]:
    """Lists of up to BATCH items."""
    batch: list[Photograph] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


# Parts --------------------------------------------------------------------------------------------


def measure_renderer(task: Task) -> list[Row]:
    """Detection rate, and landmark error in eye distances (the projected one over cos(yaw))."""
    from pipeline_steps.faces.detection import Detector

    detector = Detector()
    found, errors = 0, []
    photos = rendered(task, range(task.renders), 1, RENDER_SIZE, "renderer")
    for batch in batches(photos):
        for photo, face in zip(batch, detector.detect([p.image for p in batch]), strict=True):
            if face is None:
                continue
            found += 1
            if abs(photo.yaw) <= LANDMARK_YAW:
                projected = np.linalg.norm(photo.landmarks[1] - photo.landmarks[0])
                eyes = projected / np.cos(np.deg2rad(photo.yaw))
                errors.append(np.linalg.norm(face.landmarks - photo.landmarks, axis=1) / eyes)
    rng = numpy_generator(task.seed, "benchmark", "landmarks")
    rows = [
        proportion("face found, yaw up to 45 degrees", found, task.renders),
        mean("landmark error / eye distance, yaw up to 30", [float(e.mean()) for e in errors], rng),
    ]
    for k, name in enumerate(("left eye", "right eye", "nose", "left mouth", "right mouth")):
        rows.append(mean(f"  of the {name}", [float(e[k]) for e in errors], rng))
    return rows


def measure_recognisers(task: Task) -> list[Row]:
    """EER of all pairs of held-out people's photographs, every other one at the samples' size."""
    from pipeline_steps.faces.alignment import align_to_template
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.study.settings.photographs import AlignSettings

    recognisers = embedded_recognisers(task)
    settings = AlignSettings()
    detector = Detector(
        min_face_size=settings.detector.min_face_size, thresholds=settings.detector.thresholds
    )
    faces: list[np.ndarray] = []
    people: list[str] = []
    sides: list[int] = []
    photos = rendered(task, range(task.people), task.photographs, FACE_SIZE, "recognisers")
    images = [p.image if k % 2 == 0 else halved(p.image) for k, p in enumerate(photos)]
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        for k, face in enumerate(detector.detect(part, padding=settings.padding)):
            if face is not None:
                faces.append(align_to_template(part[k], face.landmarks))
                people.append(f"{(first + k) // task.photographs:05d}")
                sides.append(len(part[k]))
    rows = [proportion("face found in held-out photographs", len(faces), len(images))]
    for name, recogniser in recognisers.items():
        embeddings = recogniser.embed(np.stack(faces))
        rows.append(equal_error_rate(f"EER, {name}", embeddings, people, task.seed))
        for side in (FACE_SIZE, SAMPLE_SIZE):
            at = [k for k, length in enumerate(sides) if length == side]
            what = f"  among the images of {side} pixels"
            rows.append(equal_error_rate(what, embeddings[at], [people[k] for k in at], task.seed))
    return rows


def measure_autoencoder(task: Task) -> list[Row]:
    """PSNR of held-out renders after encoding and decoding, dB; over people by a bootstrap."""
    from diffusers import AutoencoderKL

    from pipeline_steps.demo_world.pretraining.autoencoder import reconstruction_quality

    folder = task.autoencoder or Path(task.weights("demo").source) / "vae"
    model = AutoencoderKL.from_pretrained(folder).float().eval()
    numbers = range(task.people)
    photos = list(rendered(task, numbers, task.photographs, FACE_SIZE, "autoencoder"))
    pictures = np.stack([halved(photo.image) for photo in photos])
    marks = np.stack([(p.landmarks + 0.5) / 2 - 0.5 for p in photos]).astype(np.float32)
    found = reconstruction_quality(model, pictures, marks)
    names = {
        "psnr": "PSNR of unseen renders, dB",
        "psnr_dark": "  of the fifth with the darkest faces",
        "psnr_eyes": "  within half an eye distance of the eyes",
    }
    return [Row(what, found[key], None, None, len(photos)) for key, what in names.items()]


def measure_looks(task: Task) -> list[Row]:
    """Mean similarity of a photograph to another of the same person, and to one of a person who
    differs in one thing, which is the next person's; the circumstances are the same.
    """
    from pipeline_steps.demo_world.rendering.renderer import render
    from pipeline_steps.faces.alignment import align_to_template

    recognisers = embedded_recognisers(task)
    rng = numpy_generator(task.seed, "benchmark", "looks")
    cosines: dict[tuple[str, str], list[float]] = {}
    for number in progress(range(task.people), description="looks", total=task.people):
        own, other = (person(task.seed, HELD_OUT, k) for k in (number, number + 1))
        first, second = (held_out_nuisance(task.seed, number, k) for k in (0, 1))
        frames = {"": (own.identity, first), "nothing": (own.identity, second)}
        for what, fields in LOOKS.items():
            borrowed = {field: getattr(other.identity, field) for field in fields}
            if what == "glasses":  # on or off
                borrowed["glasses"] = None if own.identity.glasses else "square"
            frames[what] = (replace(own.identity, **borrowed), second)
        frames["everything"] = (other.identity, second)
        photos = [
            render(identity, how, size=FACE_SIZE, texture_seed=own.texture_seed, supersample=1)
            for identity, how in frames.values()
        ]
        faces = np.stack([align_to_template(p.image, p.landmarks) for p in photos])
        for name, recogniser in recognisers.items():
            embeddings = recogniser.embed(faces)
            for what, cosine in zip(frames, embeddings @ embeddings[0], strict=True):
                cosines.setdefault((name, what), []).append(float(cosine))
    return [
        mean(f"{name}, another's {what}" if what != "nothing" else f"{name}, same", values, rng)
        for (name, what), values in cosines.items()
        if what
    ]


def embedded_recognisers(task: Task) -> dict[str, Recogniser]:
    """The recognisers that come with the code, by name."""
    from pipeline_steps.faces.recogniser import load_recogniser
    from pipeline_steps.study.registry import read_models

    return {
        name: load_recogniser(entry)
        for name, entry in read_models(task.models).items()
        if entry.task == "recogniser" and entry.source.startswith(EMBEDDED)
    }


def equal_error_rate(what: str, embeddings: np.ndarray, people: Sequence[str], seed: int) -> Row:
    """EER of all pairs, with its interval from a bootstrap over people; n counts the pairs."""
    from pipeline_steps.metrics.intervals import draw_counts, percentile_interval
    from pipeline_steps.metrics.pairs import compare
    from pipeline_steps.metrics.verification import bootstrap_verification, error_rates

    comparison = compare(embeddings, people)
    genuine, impostor = comparison.genuine.scores, comparison.impostor.scores
    n = len(comparison.identities)
    counts = draw_counts(n, REPLICATES, numpy_generator(seed, "benchmark", "eer"))
    limits = percentile_interval(bootstrap_verification(comparison, counts).eer, n)
    rate = error_rates(genuine, impostor).eer
    return Row(what, rate, limits.low, limits.high, len(genuine) + len(impostor))


PARTS: dict[str, Callable[[Task], list[Row]]] = {
    "renderer": measure_renderer,
    "autoencoder": measure_autoencoder,
    "looks": measure_looks,
    "recognisers": measure_recognisers,
    "faces": lambda task: demo_study.faces_found(task.study_folder()),
    "prompts": lambda task: demo_study.prompts_followed(
        task.study_folder(), task.weights("demo_attributes")
    ),
    "skin": lambda task: demo_study.skin(task.study_folder()),
    "identity": lambda task: demo_study.identity_table(task.study_folder()),
}


def run(task: Task, names: Sequence[str], out: Path) -> list[str]:
    """Measure the named parts, print them, add them to the JSON file `out`; those measured."""
    measured = []
    for name in names:
        start = time.perf_counter()
        try:
            rows = PARTS[name](task)
        except StepError as error:
            print(f"{name}: not measured: {error}\n", flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{name} ({seconds:.0f} s)\n{table(rows)}\n", flush=True)
        add(out, name, rows, seconds=round(seconds, 1), seed=task.seed)
        measured.append(name)
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 1 where a part that was asked for could not be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--study", type=Path, help="finished study, e.g. results/demo")
    parser.add_argument("--autoencoder", type=Path, help="folder; default: the base model's")
    parser.add_argument("--renders", type=int, default=1000, help="images of the part renderer")
    parser.add_argument("--people", type=int, default=100, help="held-out people")
    parser.add_argument("--photographs", type=int, default=6, help="of each held-out person")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of people and circumstances")
    parser.add_argument("--models", type=Path, default=Path("config/models.yaml"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_world.json"))
    args = parser.parse_args(argv)
    task = Task(
        seed=args.seed,
        renders=args.renders,
        people=args.people,
        photographs=args.photographs,
        workers=args.workers,
        study=args.study,
        models=args.models,
        autoencoder=args.autoencoder,
    )
    return 0 if run(task, args.only, args.out) == list(args.only) else 1


if __name__ == "__main__":
    raise SystemExit(run_main(main))
