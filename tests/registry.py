"""Entries of a weights registry for small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_steps.io.weights import Weights


def entry(
    task: str, architecture: str, source: Path | str, *, name: str | None = None, **options: Any
) -> Weights:
    return Weights(
        name=name or f"small_{task}",
        task=task,
        architecture=architecture,
        source=str(source),
        licence="Apache-2.0",
        commercial_use=True,
        options=options,
    )
