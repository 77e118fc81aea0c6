"""The weights registry: which weights a name stands for, from where, and under what licence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.yaml_mapping import read_mapping
from pipeline_steps.settings.base import Weights, validated
from pipeline_steps.settings.problems import meant


def read_models(path: str | os.PathLike[str]) -> dict[str, Weights]:
    """Read ``config/models.yaml``: a mapping of names to entries.

    Raises:
        StepError: the file is missing or no such mapping, or an entry has unknown or unfit keys.
    """
    raw = read_mapping(path, "weights registry")
    return {name: _entry(raw, name, path, ()) for name in raw}


def _entry(
    raw: Mapping[str, Any], name: str, path: str | os.PathLike[str], within: tuple[str, ...]
) -> Weights:
    """One entry, the names of its components replaced by their entries."""
    fields = {"name": name, **(raw[name] or {})}
    parts = fields.get("components")
    if isinstance(parts, dict):
        for part, other in parts.items():
            if other not in raw or other in (*within, name):
                raise StepError(
                    f"{path}: {name}: components.{part}: {other!r} is no other entry's name"
                )
        fields["components"] = {
            part: _entry(raw, other, path, (*within, name)) for part, other in parts.items()
        }
    return validated(Weights, fields, f"{path}: {name}")


def pick(models: Mapping[str, Weights], name: str, key: str, task: str | None = None) -> Weights:
    """The entry that a study's key names.

    Raises:
        StepError: there is no such entry, or it is for another task.
    """
    if name not in models:
        fit = sorted(entry for entry in models if task in (None, models[entry].task))
        raise StepError(f"{key}: config/models.yaml has no entry {name!r}{meant(name, fit)}")
    if task is not None and models[name].task != task:
        raise StepError(f"{key}: {name!r} is for {models[name].task}, not {task}")
    return models[name]
