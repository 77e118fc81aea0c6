"""Time from photographs of one new person to 21 images: Face Fusion against ID-Booth, in one run.

    python benchmarks/new_person.py --study results/demo --weights face_fusion.safetensors

The study's own configurations, dataset and prior images; the steps are run as the workflow runs
them, each in a process of its own, for the first person alone. ID-Booth's time is that of fine-
tuning and sampling, Face Fusion's that of sampling: its weights are trained for everybody. Times
are of the wall and of the processor, with loading.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from measured import Row, add, table

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.weights import Weights

IMAGES = 21


def timed(step: str, words: Sequence[object]) -> tuple[float, float]:
    """Seconds of the wall and of the processor that a step takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    told = [sys.executable, "-m", f"pipeline_steps.{step}", *map(str, words)]
    subprocess.run(told, check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    configs, dataset = args.study / "config", args.study / "dataset"
    people = len(pd.read_csv(dataset / "identities.csv"))
    one = ["--dataset", dataset, "--shares", people, "--share", 0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tuned = json.loads((configs / "sample/demo/idbooth/base.json").read_text("utf-8"))
        tuned["settings"] |= {"images_per_identity": IMAGES}
        write_json(work / "tuned.json", tuned)
        generator = Weights(
            name="generator",
            task="generator",
            architecture="face-fusion",
            source=str(args.weights.resolve()),
            licence="Apache-2.0",
            commercial_use=True,
        ).model_dump(mode="json")
        fused = tuned | {"variant": tuned["variant"] | {"method": "facefusion"}}
        fused["weights"] = {"base_model": tuned["weights"]["base_model"], "generator": generator}
        write_json(work / "fused.json", fused)
        fitting = timed(
            "finetune",
            [
                *("--config", configs / "finetune/demo/idbooth.json", *one),
                *("--prior", args.study / "prior/demo", "--out", work / "loras"),
            ],
        )
        sampling = timed(
            "sample",
            ["--config", work / "tuned.json", *one, "--loras", work / "loras", "--out", work / "a"],
        )
        fusing = timed("sample", ["--config", work / "fused.json", *one, "--out", work / "b"])
    rows = []
    for k, clock in enumerate(("wall", "processor")):
        idbooth = fitting[k] + sampling[k]
        rows += [
            Row(f"ID-Booth, seconds of the {clock}", idbooth, None, None, IMAGES),
            Row(f"Face Fusion, seconds of the {clock}", fusing[k], None, None, IMAGES),
            Row(f"times faster, {clock}", idbooth / fusing[k], None, None, 1),
        ]
    print(table(rows))
    if args.out:
        add(args.out, "new_person", rows, threads=int(os.environ.get("OMP_NUM_THREADS", "0")))


if __name__ == "__main__":
    main()
