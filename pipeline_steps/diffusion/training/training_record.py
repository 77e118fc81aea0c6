"""The result of one identity's fine-tuning on disk: weights, and the record that makes them count.

The weights are written first. What has no record, or another hash than its record says, is no
result, so that a process may end at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.adapters.lora_files import FILE_NAME, save_lora
from pipeline_steps.diffusion.training.choice_plot import draw_choice
from pipeline_steps.diffusion.training.fleet import FineTuned
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings

RECORD = "training.json"
PLOT = "choice.svg"


def is_finished(folder: Path, key: str) -> bool:
    """Whether a folder holds whole weights of that content key."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(
            record["key"] == key and record["weights_sha256"] == sha256_file(folder / FILE_NAME)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_result(
    frozen: Frozen[FinetuneSettings],
    subject: Subject,
    key: str,
    result: FineTuned,
    folder: Path,
    choice: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, then their record; ``choice`` says how the step was chosen."""
    settings = frozen.settings
    weights = save_lora(
        folder, result.adapter, rank=settings.rank, alpha=settings.alpha, targets=settings.targets
    )
    if choice is not None and settings.choice is not None:
        draw_choice(folder / PLOT, subject.identity, choice, settings.choice.min_diversity)
    record = {
        "key": key,
        "identity": subject.identity,
        "method": frozen.variant["method"],
        "base_model": frozen.weights["base_model"].model_dump(mode="json"),
        "recogniser": frozen.weights["recogniser"].model_dump(mode="json")
        if settings.needs_faces(frozen.variant["method"])
        else None,
        "seed": frozen.seed,
        "settings": settings.model_dump(mode="json"),
        "instance_prompt": settings.instance_prompt_for(subject.gender),
        "images": dict(zip(subject.files, subject.sha256, strict=True)),
        "weights_sha256": sha256_file(weights),
        "losses": {
            name: [round(value, 6) for value in values] for name, values in result.losses.items()
        },
        "choice": choice,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    write_json(folder / RECORD, record)
