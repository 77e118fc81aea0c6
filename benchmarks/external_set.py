"""Time and memory of a set of others: generated images as .rec and as Parquet, aligned as they are.

    python benchmarks/external_set.py --images 2000 10000

Each size and layout is read by a process of its own, whose peak memory is noted; it should not grow
with the set. The pixels are noise about one rendered face, so that the faces stand on the template
and every image has other bytes. The embedded detector looks at a few images only.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PER_PERSON = 50


def images(count: int) -> Iterator[tuple[bytes, dict[str, object]]]:
    """JPEGs of one aligned face, each with its own noise."""
    from skimage import data

    from pipeline_steps.faces.alignment import align_to_template
    from pipeline_steps.faces.detection import Detector

    photograph = np.ascontiguousarray(data.astronaut()[40:200, 140:300])
    found = Detector().detect([photograph], padding=0.5)[0]
    assert found is not None
    face = align_to_template(photograph, found.landmarks).astype(np.int16)
    for number in range(count):
        noise = np.random.default_rng(number).integers(-6, 7, face.shape, np.int16)
        stream = io.BytesIO()
        Image.fromarray((face + noise).clip(0, 255).astype(np.uint8)).save(stream, "JPEG")
        yield stream.getvalue(), {"identity": f"n{number // PER_PERSON}", "index": number}


def write(layout: str, count: int, folder: Path) -> None:
    """A dataset of so many images."""
    from pipeline_steps.export import write_image_table
    from pipeline_steps.io.recordio import Writer

    names = [f"n{number}" for number in range(-(-count // PER_PERSON))]
    folder.mkdir()
    if layout == "parquet":
        write_image_table(images(count), folder / "data/train.parquet", names, "jpg")
        return
    with Writer(folder, count, names) as writer:
        for content, row in images(count):
            writer.add(str(row["identity"]), content)


def read(source: Path, out: Path) -> None:
    """Align a dataset in this process and print its time, and the peak memory in MiB."""
    from pipeline_steps import align
    from pipeline_steps.study.settings.base import Frozen
    from pipeline_steps.study.settings.photographs import AlignSettings

    start = perf_counter()
    align.run(
        Frozen("benchmark", "align", 0, AlignSettings()), external=source, out=out, device="cpu"
    )
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    """Print a row per layout and size, of a first run and of one that finds all finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--read", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.read:
        read(*arguments.read)
        return
    print(f"{'layout':9}{'images':>9}{'run':>8}{'seconds':>9}{'images/s':>10}{'peak MiB':>10}")
    for layout in ("rec", "parquet"):
        for count in arguments.images:
            with tempfile.TemporaryDirectory() as folder:
                source, out = Path(folder, "set"), Path(folder, "out")
                write(layout, count, source)
                command = [sys.executable, __file__, "--read", str(source), str(out)]
                for run in ("first", "again"):
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    speed = count / found["seconds"]
                    print(
                        f"{layout:9}{count:9}{run:>8}{found['seconds']:9.1f}{speed:10.0f}"
                        f"{found['peak']:10.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
