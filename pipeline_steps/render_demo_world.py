"""Render the embedded world: consented participants as TFD archives, strangers, benchmarks.

In:  nothing but the configuration's seed.
Out: in --out:
     tfd/TD_RGB_A_Set{1..4}.zip   <archive>/<participant>/TD_RGB_A_<camera>_<position>.jpg, as in
                                  the Tufts Face Database
     tfd/gender.csv               participant, gender
     in_the_wild.zip              one image of each of many other people (FFHQ's role)
     benchmarks/*.bin             InsightFace's format, 112x112, aligned; validation.bin is for
                                  choosing the epoch of a recogniser
     truth/*.parquet              what the renderer knows of each photograph: pose in degrees,
                                  landmarks in pixels, place, expression, age

Source of the archives' layout: Panetta et al., "A Comprehensive Database for Benchmarking Imaging
Systems", TPAMI 2018.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_steps.io.atomic import atomic_path, write_text
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import RenderDemoWorldSettings

if TYPE_CHECKING:
    from pipeline_steps.demo_world.rendering.parameters import Nuisance
    from pipeline_steps.faces.detection import Detector

ARCHIVES = 4
JPEG_QUALITY = 92
BENCHMARK_RENDER_SIZE = 128  # pixels, before the face is aligned
MIN_BENCHMARK_FACE = 40  # pixels
_ZIP_DATE = (2018, 1, 1, 0, 0, 0)

Row = dict[str, Any]
Rendered = tuple[str, bytes, Row]  # file name, encoded image, truth


def archive_of(number: int, participants: int) -> int:
    """Archive (1 ... 4) of a participant: consecutive numbers share one, as in TFD."""
    return (number - 1) * ARCHIVES // participants + 1


def participant_photographs(
    number: int, *, seed: int, size: int, participants: int
) -> list[Rendered]:
    """The 27 photographs of one participant's session: archive path, JPEG bytes and truth.

    Args:
        number: of the participant, from 1.
        seed: of the world.
        size: side of a photograph, pixels.
        participants: how many there are, which decides who shares an archive.
    """
    from PIL import Image

    from pipeline_steps.demo_world.rendering.population import CONSENTED, laboratory_session, person

    who = person(seed, CONSENTED, number)
    folder = f"TD_RGB_A_Set{archive_of(number, participants)}/{number}"
    made: list[Rendered] = []
    for camera, position, nuisance in laboratory_session(seed, number):
        photo = who.photograph(nuisance, size, supersample=1)
        name = f"{folder}/TD_RGB_A_{camera}_{position}.jpg"
        stream = io.BytesIO()
        Image.fromarray(photo.image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        row = {"identity": f"ID_{number}", **_truth(name, photo.landmarks, nuisance)}
        made.append((name, stream.getvalue(), row))
    return made


def wild_photograph(number: int, *, seed: int, size: int) -> Rendered:
    """One person of the in-the-wild set, `size` pixels wide: file name, PNG bytes and truth."""
    from pipeline_steps.demo_world.rendering.population import WILD, person, wild_nuisance
    from pipeline_steps.io.images import encode_png

    nuisance = wild_nuisance(seed, WILD, number, 0)
    photo = person(seed, WILD, number).photograph(nuisance, size)
    name = f"{number:05d}.png"
    return name, encode_png(photo.image), _truth(name, photo.landmarks, nuisance)


def _truth(file: str, landmarks: np.ndarray, nuisance: Nuisance) -> Row:
    return {
        "file": file,
        **{angle: getattr(nuisance, angle) for angle in ("yaw", "pitch", "roll")},
        "landmarks": landmarks.ravel().tolist(),
        **{fact: getattr(nuisance, fact) for fact in ("place", "expression", "age")},
    }


def benchmark_face(
    number: int, how: Nuisance, *, name: str, seed: int, detector: Detector
) -> np.ndarray:
    """An image of member `number` of a benchmark's population, uint8 [112, 112, 3].

    It is aligned by the detector's landmarks; by the renderer's own where no face is found.
    """
    from pipeline_steps.demo_world.rendering.population import person
    from pipeline_steps.faces.alignment import align_to_template

    who = person(seed, f"benchmark {name}", number)
    photo = who.photograph(how, BENCHMARK_RENDER_SIZE, supersample=1)
    found = detector.detect([photo.image])[0]
    return align_to_template(photo.image, photo.landmarks if found is None else found.landmarks)


def render_benchmark(name: str, pairs: int, *, seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """One benchmark: its name, images uint8 [2n, 112, 112, 3] pair by pair, and flags bool [n]."""
    import torch

    from pipeline_steps.demo_world.rendering.population import build_pairs
    from pipeline_steps.faces.detection import Detector

    torch.set_num_threads(1)  # this runs in one of several processes
    face = partial(
        benchmark_face, name=name, seed=seed, detector=Detector(min_face_size=MIN_BENCHMARK_FACE)
    )
    made = build_pairs(name, pairs, seed)
    images = [face(*shown) for p in made for shown in zip(p.people, p.circumstances, strict=True)]
    return name, np.stack(images), np.array([pair.same for pair in made])


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Store files in a zip whose bytes depend on nothing but them; atomic."""
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), content)


def gender_table(seed: int, participants: int) -> str:
    """CSV of every participant's number and gender, M or F."""
    from pipeline_steps.demo_world.rendering.population import CONSENTED, person

    numbers = range(1, participants + 1)
    genders = [person(seed, CONSENTED, number).identity.gender for number in numbers]
    rows = [f"{n},{gender[0].upper()}" for n, gender in zip(numbers, genders, strict=True)]
    return "\n".join(["participant,gender", *rows, ""])


def run(frozen: Frozen[RenderDemoWorldSettings], *, out: Path, workers: int = 1) -> None:
    """Render everything; every file's bytes follow from the configuration.

    Args:
        frozen: The step's configuration.
        out: Folder of the rendered world.
        workers: Processes that render side by side; changes no byte.
    """
    settings, seed = frozen.settings, frozen.seed
    with ProcessPoolExecutor(workers) as pool:
        _write_benchmarks(pool, settings, seed, out)
        _write_participants(pool, settings, seed, out)
        _write_wild(pool, settings, seed, out)
    write_text(out / "tfd" / "gender.csv", gender_table(seed, settings.participants))
    get_logger("render_demo_world").info(
        "%d participants, %d strangers, benchmarks of %d pairs",
        settings.participants,
        settings.in_the_wild,
        settings.benchmark_pairs,
    )


def _write_benchmarks(
    pool: ProcessPoolExecutor, settings: RenderDemoWorldSettings, seed: int, out: Path
) -> None:
    from pipeline_steps.demo_world.rendering.population import BENCHMARKS, VALIDATION
    from pipeline_steps.recognition.benchmarks import write_bin

    pairs = [
        settings.validation_pairs if name == VALIDATION else settings.benchmark_pairs
        for name in BENCHMARKS
    ]
    made = pool.map(partial(render_benchmark, seed=seed), BENCHMARKS, pairs)
    for name, images, same in progress(made, description="benchmarks", total=len(BENCHMARKS)):
        write_bin(out / "benchmarks" / f"{name}.bin", images, same)


def _write_participants(
    pool: ProcessPoolExecutor, settings: RenderDemoWorldSettings, seed: int, out: Path
) -> None:
    participants = settings.participants
    job = partial(
        participant_photographs,
        seed=seed,
        size=settings.photograph_size,
        participants=participants,
    )
    made = pool.map(job, range(1, participants + 1))
    archives: dict[int, list[tuple[str, bytes]]] = {k: [] for k in range(1, ARCHIVES + 1)}
    rows = []
    sessions = progress(made, description="participants", total=participants)
    for number, session in enumerate(sessions, start=1):
        archives[archive_of(number, participants)] += [(name, jpeg) for name, jpeg, _ in session]
        rows += [row for _, _, row in session]
    for archive, members in archives.items():
        write_zip(out / "tfd" / f"TD_RGB_A_Set{archive}.zip", members)
    write_manifest(out / "truth" / "tfd.parquet", rows)


def _write_wild(
    pool: ProcessPoolExecutor, settings: RenderDemoWorldSettings, seed: int, out: Path
) -> None:
    job = partial(wild_photograph, seed=seed, size=settings.in_the_wild_size)
    made = pool.map(job, range(settings.in_the_wild), chunksize=8)
    strangers = list(progress(made, description="in the wild", total=settings.in_the_wild))
    write_zip(out / "in_the_wild.zip", [(name, content) for name, content, _ in strangers])
    write_manifest(out / "truth" / "in_the_wild.parquet", [row for _, _, row in strangers])


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
