"""State of identities in training, on disk while it lasts.

Layout: ``<folder>/<generation>/<identity>.safetensors``. A generation is one state of one fleet;
it appears by a single rename, so that all its members are of the same step whenever the process
ends. Each identity has a file of its own all the same: it may go on in a fleet of other members,
or be deleted alone. Nothing here is a result, and nothing here outlives the training.
"""

from __future__ import annotations

import glob
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline_steps.diffusion.training.fleet_state import State, take_rows
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.tensors import canonical_safetensors, save_tensors
from pipeline_steps.runtime.logs import get_logger


class Checkpoints:
    """Checkpoints of identities, each valid for one content key only.

    Args:
        folder: Where they lie; made when the first is written.
        keys: Identity to its content key. What was written under another key is never read.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str]) -> None:
        self._folder = folder
        self._keys = keys

    def latest(self, identity: str) -> State | None:
        """The identity's state of most steps, as of a fleet of one; None where there is none.

        A damaged file is passed over with a line in the log.
        """
        states = [_read(path, self._keys[identity]) for path in self._files(identity)]
        return max(filter(None, states), key=lambda state: int(state["step"]), default=None)

    def save(self, identities: Sequence[str], state: State) -> None:
        """Write the state of a fleet, its rows being those of ``identities``.

        What they had before is deleted afterwards.
        """
        before = [path for identity in identities for path in self._files(identity)]
        # A name never used before: replacing a folder would not be one rename.
        name = f"{int(state['step'].max()):07d}-{secrets.token_hex(4)}"
        with atomic_path(self._folder / name) as folder:
            for k, identity in enumerate(identities):
                own = take_rows(state, [k])
                header = {"key": self._keys[identity], "sha256": _checksum(own)}
                save_tensors(folder / f"{identity}.safetensors", own, header)
        _delete(before)

    def remove(self, identity: str) -> None:
        """Delete every state of an identity, of whatever key."""
        _delete(self._files(identity, unfinished=True))

    def _files(self, identity: str, *, unfinished: bool = False) -> list[Path]:
        """The identity's files; those of a generation that never appeared only on demand."""
        found = sorted(self._folder.glob(f"*/{glob.escape(identity)}.safetensors"))
        return [path for path in found if unfinished or not path.parent.name.startswith(".")]


def _read(path: Path, key: str) -> State | None:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        get_logger("finetune").warning("checkpoint %s is damaged and not used: %s", path, error)
        return None
    if header.get("sha256") != _checksum(state):
        get_logger("finetune").warning("checkpoint %s is damaged and not used: checksum", path)
        return None
    return state


def _checksum(state: State) -> str:
    return sha256_bytes(canonical_safetensors(save(dict(state))))


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):  # gone with their last file
            try:
                folder.rmdir()
            except OSError:
                break
