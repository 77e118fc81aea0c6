"""The state of an unfinished computation in one file, so that a killed job goes on where it was.

Nothing here is a result, and nothing here outlives the computation.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.tensors import canonical_safetensors, save_tensors
from pipeline_steps.runtime.logs import get_logger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """State in a safetensors file: tensors, and plain values as JSON in its header.

    Attributes:
        path: The file; written atomically, the former one stays until the new one is whole.
        key: Key of what is computed. State that was written under another key is never read.
    """

    path: Path
    key: str

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
        """Replace the state."""
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"key": self.key, "values": json.dumps(dict(values or {}))}
        save_tensors(self.path, stored, {**header, "sha256": _checksum(stored)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state, on the CPU; None where there is none under this key that is whole."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(header["values"])
            if header["sha256"] != _checksum(tensors):
                raise ValueError("checksum")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log = get_logger("checkpoint")
            log.warning("%s is damaged and not used: %s", self.path, error)
            return None
        return tensors, values

    def clear(self) -> None:
        """Remove the state, of whatever key, and its folder with the last file in it."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in it, or it is gone
            self.path.parent.rmdir()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    return sha256_bytes(canonical_safetensors(save(dict(tensors))))
