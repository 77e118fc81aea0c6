"""Render the embedded world: consented participants as TFD archives, an in-the-wild set, five benchmarks.

In:  nothing but the configuration's seed.
Out: tfd/TD_RGB_A_Set{1..4}.zip   <archive>/<participant>/TD_RGB_A_<camera>_<position>.jpg, as in the Tufts Face Database
     tfd/gender.csv               participant, gender
     in_the_wild.zip              one image of each of many other people (FFHQ's role)
     benchmarks/*.bin             InsightFace's format, 112x112, aligned
     truth/*.parquet              what the renderer knows: pose, landmarks, place, expression of each image
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_steps.files.atomic import atomic_path, write_bytes
from pipeline_steps.files.errors import run_main
from pipeline_steps.files.logs import get_logger, progress
from pipeline_steps.files.manifests import write_manifest
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.render_demo_world import RenderDemoWorldSettings

ARCHIVES = 4
JPEG_QUALITY = 92
_ZIP_DATE = (2018, 1, 1, 0, 0, 0)

Row = dict[str, Any]


def archive_of(number: int, participants: int) -> int:
    """Archive (1 ... 4) of a participant: consecutive numbers share one, as in TFD."""
    return (number - 1) * ARCHIVES // participants + 1


def _jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _truth(file: str, photo: Any, nuisance: Any) -> Row:
    return {
        "file": file, "yaw": photo.yaw, "pitch": photo.pitch, "roll": photo.roll,
        "landmarks": [float(x) for x in photo.landmarks.ravel()], "place": nuisance.place,
        "expression": nuisance.expression, "age": nuisance.age,
    }  # fmt: skip


def participant_photographs(
    number: int, *, seed: int, size: int, participants: int
) -> list[tuple[str, bytes, Row]]:
    """The 27 photographs of one participant: archive path, JPEG bytes and truth."""
    from pipeline_steps.demo_world.population import CONSENTED, laboratory_session, person

    who = person(seed, CONSENTED, number)
    made = []
    for camera, position, nuisance in laboratory_session(seed, number):
        photo = who.photograph(nuisance, size, supersample=1)
        name = f"TD_RGB_A_Set{archive_of(number, participants)}/{number}/TD_RGB_A_{camera}_{position}.jpg"
        made.append(
            (
                name,
                _jpeg(photo.image),
                {"identity": f"ID_{number}", **_truth(name, photo, nuisance)},
            )
        )
    return made


def wild_photograph(number: int, *, seed: int, size: int) -> tuple[str, bytes, Row]:
    """One person of the in-the-wild set: file name, PNG bytes and truth."""
    from pipeline_steps.demo_world.population import WILD, person, wild_nuisance
    from pipeline_steps.files.images import encode_png

    nuisance = wild_nuisance(seed, WILD, number, 0)
    photo = person(seed, WILD, number).photograph(nuisance, size)
    name = f"{number:05d}.png"
    return name, encode_png(photo.image), _truth(name, photo, nuisance)


def _align(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Align by the detector's landmarks; by the renderer's own where it finds no face."""
    from pipeline_steps.faces.alignment import align_to_template
    from pipeline_steps.faces.detection import Detector

    found = Detector(min_face_size=40).detect([image])[0]
    return align_to_template(image, known if found is None else found.landmarks)


def benchmark_face(
    identity_seed: int, how: dict[str, float | int], *, name: str, seed: int
) -> np.ndarray:
    """One aligned benchmark image, uint8 [112, 112, 3]."""
    from pipeline_steps.demo_world.nuisance import in_the_wild
    from pipeline_steps.demo_world.population import person

    drawn = in_the_wild(np.random.default_rng(int(how["seed"])))
    nuisance = replace(
        drawn,
        yaw=float(how["yaw"]),
        pitch=float(how["pitch"]),
        roll=float(how["roll"]),
        age=float(how["age"]),
    )
    photo = person(seed, f"benchmark {name}", identity_seed).photograph(
        nuisance, 128, supersample=1
    )
    return _align(photo.image, photo.landmarks)


def render_benchmark(name: str, *, seed: int, pairs: int) -> tuple[str, np.ndarray, np.ndarray]:
    """One benchmark: its name, images uint8 [2n, 112, 112, 3] and flags bool [n]."""
    import torch

    from pipeline_steps.demo_world.benchmarks import build_pairs, render_pairs

    torch.set_num_threads(1)
    images, same = render_pairs(
        build_pairs(name, pairs, seed), partial(benchmark_face, name=name, seed=seed)
    )
    return name, images, same


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Store files in a zip whose bytes depend on nothing but them."""
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), content)


def run(frozen: Frozen[RenderDemoWorldSettings], *, out: Path) -> None:
    """Render everything below `out`."""
    from pipeline_steps.demo_world.population import BENCHMARKS, CONSENTED, person
    from pipeline_steps.recognition.benchmarks import write_bin

    log, s, seed = get_logger("render_demo_world"), frozen.settings, frozen.seed
    numbers = range(1, s.participants + 1)
    with ProcessPoolExecutor(s.workers) as pool:
        job = partial(render_benchmark, seed=seed, pairs=s.benchmark_pairs)
        for name, images, same in progress(
            pool.map(job, BENCHMARKS), description="benchmarks", total=len(BENCHMARKS)
        ):
            with atomic_path(out / "benchmarks" / f"{name}.bin") as temporary:
                write_bin(temporary, images, same)
        photographs = partial(
            participant_photographs, seed=seed, size=s.photograph_size, participants=s.participants
        )
        sessions = list(
            progress(pool.map(photographs, numbers), description="participants", total=len(numbers))
        )
        wild = partial(wild_photograph, seed=seed, size=s.in_the_wild_size)
        strangers = list(pool.map(wild, range(s.in_the_wild), chunksize=8))
    for archive in range(1, ARCHIVES + 1):
        members = [
            (name, content)
            for number, session in zip(numbers, sessions, strict=True)
            if archive_of(number, s.participants) == archive
            for name, content, _ in session
        ]
        write_zip(out / "tfd" / f"TD_RGB_A_Set{archive}.zip", members)
    write_zip(out / "in_the_wild.zip", [(name, content) for name, content, _ in strangers])
    write_manifest(
        out / "truth" / "tfd.parquet", [row for session in sessions for _, _, row in session]
    )
    write_manifest(out / "truth" / "in_the_wild.parquet", [row for _, _, row in strangers])
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["participant", "gender"])
    for number in numbers:
        writer.writerow(
            [number, "M" if person(seed, CONSENTED, number).identity.gender == "male" else "F"]
        )
    write_bytes(out / "tfd" / "gender.csv", table.getvalue().encode())
    log.info("%d participants, %d strangers, %d benchmarks of %d pairs", s.participants, s.in_the_wild,
             len(BENCHMARKS), s.benchmark_pairs)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="frozen configuration of this step"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the rendered world")
    args = parser.parse_args(argv)
    run(load_frozen(args.config, RenderDemoWorldSettings), out=args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
