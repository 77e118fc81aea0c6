"""State of an unfinished training in one file, so that a killed job goes on where it was.

The file is safetensors: all tensors, and the plain values as JSON in its header. It is written
atomically, and its name is the content key of the training, so that state of another configuration,
other images or other code is never picked up.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline_steps.io.tensors import save_tensors

FOLDER = ".training"  # beside the results, declared nowhere, gone after success


@dataclass(frozen=True)
class Checkpoints:
    """Where one training keeps its state.

    Attributes:
        out: folder of the training's results.
        key: content key of the training.
    """

    out: Path
    key: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / FOLDER / f"{self.key[:32]}.safetensors"

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Write the state; the former one stays until the new one is whole."""
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_tensors(self.path, stored, {"values": json.dumps(values)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state, on the CPU; None where there is none that can be read."""
        try:
            with safe_open(self.path, framework="pt") as stored:
                values = json.loads((stored.metadata() or {})["values"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return tensors, values

    def clear(self) -> None:
        """Remove the state, other configurations' leftovers included."""
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)
