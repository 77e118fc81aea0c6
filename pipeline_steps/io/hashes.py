"""SHA-256 of files, bytes and JSON values, as lower-case hexadecimal."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json

REMEMBERED = Path(".snakemake") / "hashes"  # below the working folder, safe to delete


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(obj: Any) -> str:
    """SHA-256 of a JSON value in canonical form: the order of keys does not matter."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(text.encode("ascii"))


def remembered_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, read only where path, size or time of change are new.

    For files that are looked at in every run and change hardly ever, such as weights.
    """
    place = Path(path).resolve()
    state = place.stat()
    noted = [str(place), state.st_size, state.st_mtime_ns]
    note = REMEMBERED / f"{sha256_bytes(str(place).encode())[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["file"] == noted:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = sha256_file(place)
    write_json(note, {"file": noted, "sha256": digest})
    return digest
