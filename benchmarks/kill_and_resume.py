"""Kill fine-tuning at random moments, run it again, and compare with an undisturbed run.

    python benchmarks/kill_and_resume.py --times 20

Real processes and real signals, on a small random base model. Each time, one training of two fleets
of two identities is killed once and run again to its end; it has to give the undisturbed run's
weights and records, bit for bit, and to leave alone what was finished before the kill. Processes
are forked from a server that has loaded the libraries, so that kills fall on work, not on imports.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_steps.io.atomic import write_json, write_text
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.io.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

COUNTS = {"ID_1": 3, "ID_2": 2, "ID_3": 4, "ID_10": 3}
AT_ONCE = 2
CHECKPOINT_SECONDS = 0.15
SIDE = 32  # of an image, pixels
PRELOAD = [
    "pipeline_steps.finetune",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.tokenization_clip",
]


class CentreFace:
    """A face in the centre of every image, embedded by its colours: this is not about faces."""

    def boxes(self, images: Tensor) -> list[np.ndarray | None]:
        return [np.array([8, 8, 24, 24], dtype=np.float32) for _ in images]

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        from torch.nn.functional import avg_pool2d

        return avg_pool2d(images[:, :, 8:24, 8:24], 4).flatten(1)


@dataclass(frozen=True)
class Trial:
    """One disturbed training.

    Attributes:
        moment: Seconds from the beginning of training to the signal.
        exit_status: Of the disturbed process; minus the signal's number where it killed it.
        finished: Identities with a record when the process was gone.
        resumed: Whether the second process went on from a checkpoint.
        equal: Whether weights and records are those of the undisturbed run.
        kept: Whether what was finished was left alone by the second process.
        clean: Whether nothing but results is left.
    """

    moment: float
    exit_status: int
    finished: int
    resumed: bool
    equal: bool
    kept: bool
    clean: bool


def write_study(folder: Path, *, method: str = "idbooth", steps: int = 24) -> None:
    """A base model, a dataset, a prior set, and the configuration of fine-tuning."""
    from random_models import write_random_pipeline

    from pipeline_steps import prior
    from pipeline_steps.faces.recogniser import embedded_by
    from pipeline_steps.study.settings.base import load_frozen
    from pipeline_steps.study.settings.diffusion import FinetuneSettings, PriorSettings

    write_random_pipeline(folder / "tiny")
    few = {"images": 4, "steps": 2}
    write_configuration(folder, "prior", few, {"base_model": "tiny"})
    frozen = load_frozen(folder / "prior.json", PriorSettings)
    write_dataset(folder / "dataset", embedded_by(frozen.weights["recogniser"]))
    prior.run(frozen, out=folder / "prior", guide=CentreFace())
    settings = FinetuneSettings(steps=steps, learning_rate=1e-2, rank=2, alpha=2.0)
    resolved = settings.resolved("tiny", method).model_dump(mode="json")
    write_configuration(folder, "finetune", resolved, {"base_model": "tiny", "method": method})


def write_dataset(folder: Path, header: dict[str, str]) -> None:
    """Images of noise and embeddings of noise, as prepare and embed would write them."""
    rows, table = [], ["identity,gender,n_images,source,consent"]
    for i, (identity, count) in enumerate(COUNTS.items()):
        noise = np.random.default_rng(i)
        files = [f"images/{identity}/{number}.png" for number in range(count)]
        for file in files:
            write_png(folder / file, noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            digest = sha256_file(folder / file)
            rows.append({"identity": identity, "file": file, "sha256": digest, "kept": True})
        table.append(f"{identity},M,{count},noise,yes")
        vectors = noise.normal(size=(count, 48)).astype(np.float32)
        path = folder / "embeddings" / f"{identity}.safetensors"
        save_features(path, vectors, files, key="embeddings", **header)
    write_text(folder / "identities.csv", "\n".join(table) + "\n")
    write_manifest(folder / "manifest.parquet", rows, list(rows[0]))


def write_configuration(
    folder: Path, step: str, settings: dict[str, Any], variant: dict[str, str]
) -> None:
    """The frozen configuration of a step. The recogniser is not read: faces are given."""
    common = {"architecture": "stable-diffusion", "licence": "none", "commercial_use": True}
    weights = {
        role: Weights(
            name="tiny",
            task=role,
            source=str(folder / "tiny"),
            options={"resolution": SIDE},
            **common,
        ).model_dump(mode="json")
        for role in ("base_model", "recogniser")
    }
    write_json(
        folder / f"{step}.json",
        {
            "study": "kill",
            "step": step,
            "seed": 7,
            "settings": settings,
            "weights": weights,
            "variant": variant,
        },
    )


def train(folder: Path, out: Path, log: Path) -> None:
    """The body of a training process; ends it with the step's exit status."""
    stream = log.open("a")
    os.dup2(stream.fileno(), 2)
    sys.stderr = stream
    import torch

    from pipeline_steps import finetune
    from pipeline_steps.study.command import run_main
    from pipeline_steps.study.settings.base import load_frozen
    from pipeline_steps.study.settings.diffusion import FinetuneSettings

    torch.set_num_threads(1)

    def main() -> int:
        finetune.run(
            load_frozen(folder / "finetune.json", FinetuneSettings),
            dataset=folder / "dataset",
            prior=folder / "prior",
            out=out,
            at_once=AT_ONCE,
            checkpoint_minutes=CHECKPOINT_SECONDS / 60,
            guide=CentreFace(),
        )
        return 0

    status = run_main(main)
    stream.flush()
    os._exit(status)


class Study:
    """A small study, its undisturbed training, and any number of disturbed ones.

    Args:
        folder: An empty folder for all of it.
        method: Method of fine-tuning.
        steps: Steps of each of the two fleets.
    """

    def __init__(self, folder: Path, *, method: str = "idbooth", steps: int = 24) -> None:
        self.folder = folder
        self.trials = 0
        write_study(folder, method=method, steps=steps)
        self.context: ForkServerContext = get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        waiting = self.context.Process(target=os.getpid)  # the first waits for the server's imports
        waiting.start()
        waiting.join()
        self.seconds = self._finish(folder / "undisturbed")

    def disturb(self, share: float, number: signal.Signals) -> Trial:
        """Signal a training after a share of its time from its beginning, run it again."""
        self.trials += 1
        out = self.folder / f"trial{self.trials}"
        process = self._start(out)
        begin = wait_for_training(process, log_of(out))
        process.join(share * self.seconds)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
        else:  # it was faster than the undisturbed one
            self.seconds = min(self.seconds, time.monotonic() - begin)
        process.join()
        before = finished(out)
        log_of(out).unlink(missing_ok=True)
        self._finish(out)
        after = finished(out)
        trial = Trial(
            share * self.seconds,
            process.exitcode or 0,
            finished=len(before),
            resumed="going on from step" in log_of(out).read_text(),
            equal=contents(out) == contents(self.folder / "undisturbed"),
            kept=all(after[identity] == then for identity, then in before.items()),
            clean=not (out / "checkpoints").exists() and not list(out.rglob(".*")),
        )
        shutil.rmtree(out)
        return trial

    def _start(self, out: Path) -> ForkServerProcess:
        process = self.context.Process(target=train, args=(self.folder, out, log_of(out)))
        process.start()
        return process

    def _finish(self, out: Path) -> float:
        """Run a training to its end; returns the seconds of the training itself."""
        process = self._start(out)
        begin = wait_for_training(process, log_of(out))
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"training ended with {process.exitcode}: {log_of(out).read_text()}")
        return time.monotonic() - begin


def wait_for_training(process: ForkServerProcess, log: Path) -> float:
    """Wait until training begins, after everything was loaded; returns the time."""
    while process.is_alive() and not (log.is_file() and "step/s" in log.read_text()):
        time.sleep(0.005)
    return time.monotonic()


def log_of(out: Path) -> Path:
    """Where a training's messages go."""
    return out.parent / f"{out.name}.log"


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a result by its name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def finished(out: Path) -> dict[str, list[tuple[int, int]]]:
    """Finished identities to inode and time of weights and key: rewriting changes them."""
    return {
        record.parent.name: [
            ((status := path.stat()).st_ino, status.st_mtime_ns)
            for path in (record, record.with_name("pytorch_lora_weights.safetensors"))
        ]
        for record in out.glob("*/items.json")
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/kill_and_resume.py")
    parser.add_argument(
        "--times", type=int, default=20, help="trainings to disturb before their end"
    )
    parser.add_argument("--signal", choices=("KILL", "TERM", "USR1"), default="KILL")
    parser.add_argument("--steps", type=int, default=24, help="of each of the two fleets")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    moments = random.Random(arguments.seed)
    number = signal.Signals[f"SIG{arguments.signal}"]
    done: list[Trial] = []
    print("moment s  exit  finished  resumed  equal  kept  clean", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), steps=arguments.steps)
        while sum(trial.exit_status != 0 for trial in done) < arguments.times:
            t = study.disturb(moments.random(), number)
            done.append(t)
            print(
                f"{t.moment:8.2f}  {t.exit_status:4d}  {t.finished:8d}  {t.resumed!s:>7}  "
                f"{t.equal!s:>5}  {t.kept!s:>4}  {t.clean!s:>5}",
                flush=True,
            )
    good = sum(t.equal and t.kept and t.clean for t in done)
    disturbed = sum(t.exit_status != 0 for t in done)
    print(f"{good} of {len(done)} equal bit for bit, finished identities left alone")
    print(f"{disturbed} were disturbed before their end")
    print(f"{sum(t.resumed for t in done)} went on from a checkpoint")
    return 0 if good == len(done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
