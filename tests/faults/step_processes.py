"""Steps as real processes: forked from a server that has loaded the libraries, which saves time."""

from __future__ import annotations

import importlib
import os
import resource
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pipeline_steps.study.command import run_main

PRELOAD = [
    "pipeline_steps.finetune",
    "pipeline_steps.sample",
    "pipeline_steps.features",
    "pipeline_steps.prepare",
    "pipeline_steps.recognise",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.tokenization_clip",
    "facenet_pytorch",
]
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOAD)


@dataclass(frozen=True)
class Ended:
    """How a step ended.

    Attributes:
        status: Its exit status.
        errors: What it wrote to standard error.
    """

    status: int | None
    errors: str

    @property
    def sentence(self) -> str:
        """The last line: what is wrong."""
        return self.errors.strip().rpartition("\n")[2]


def run_step(
    project: Path,
    command: str,
    log: Path,
    *,
    largest_file: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a step in a project's folder.

    Args:
        project: Working folder.
        command: Name of the step and its arguments.
        log: File for its messages.
        largest_file: Bytes; a write beyond fails, as on a full disk.
        environment: Variables to set.
    """
    process = CONTEXT.Process(
        target=_body, args=(project, shlex.split(command), log, largest_file, environment or {})
    )
    process.start()
    process.join()
    return Ended(process.exitcode, log.read_text("utf-8", errors="replace"))


def _body(
    project: Path,
    words: list[str],
    log: Path,
    largest_file: int | None,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    os.chdir(project)
    stream = log.open("w")
    os.dup2(stream.fileno(), 2)
    sys.stderr = stream
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    step = importlib.import_module(f"pipeline_steps.{words[0]}")
    status = run_main(lambda: step.main(words[1:]))
    stream.flush()
    os._exit(status)
