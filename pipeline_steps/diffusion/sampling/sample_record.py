"""What has been sampled so far: an entry for every drawing, beside the images of its identity.

An entry stands there only once its image does (atomic writes, in that order), so a process that is
killed at any moment leaves nothing that looks finished and is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.sampling.gate import Measured, as_json, from_json
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_file

RECORD = "samples.json"
Place = tuple[str, int, int]  # identity, index, attempt


@dataclass(frozen=True)
class Drawing:
    """A finished drawing.

    Attributes:
        key: Content key of the image.
        sha256: Hash of its PNG file.
        measured: What the gate's judge saw; None: not asked.
        judge: Content key of that judge.
    """

    key: str
    sha256: str
    measured: Measured | None = None
    judge: str | None = None


class SampleRecord:
    """The drawings of some identities.

    Args:
        out: Folder of the variant's images.
        identities: Whose records are read.
    """

    def __init__(self, out: Path, identities: Iterable[str]) -> None:
        self._out = out
        self._entries = {name: _read(out / name / RECORD) for name in identities}

    def find(self, place: Place, key: str) -> Drawing | None:
        """The drawing made under this key, if there is one; its image may be gone."""
        identity, index, attempt = place
        drawing = self._entries[identity].get(f"{index}.{attempt}")
        return drawing if drawing is not None and drawing.key == key else None

    def image(self, place: Place, drawing: Drawing) -> Path | None:
        """The drawing's image file, if it is there and whole."""
        path = self._out / file_of(place)
        return path if path.is_file() and sha256_file(path) == drawing.sha256 else None

    def add(self, drawings: dict[Place, Drawing]) -> None:
        """Note drawings whose images have been written or rejected."""
        for (identity, index, attempt), drawing in drawings.items():
            self._entries[identity][f"{index}.{attempt}"] = drawing
        for identity in {place[0] for place in drawings}:
            entries = self._entries[identity]
            write_json(
                self._out / identity / RECORD,
                {name: _to_json(drawing) for name, drawing in entries.items()},
            )


def file_of(place: Place) -> str:
    """Image file of a place, relative to the variant's folder; one for all attempts."""
    return f"{place[0]}/{place[1]}.png"


def _read(path: Path) -> dict[str, Drawing]:
    """Entries of a record; one that is broken or of another format counts as none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): Drawing(
                str(entry["key"]),
                str(entry["sha256"]),
                None if entry["measured"] is None else from_json(entry["measured"]),
                entry["judge"],
            )
            for name, entry in plain.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _to_json(drawing: Drawing) -> dict[str, Any]:
    measured = drawing.measured
    return {
        "key": drawing.key,
        "sha256": drawing.sha256,
        "measured": None if measured is None else as_json(measured),
        "judge": drawing.judge,
    }
