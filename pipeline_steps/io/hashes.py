"""SHA-256 of files, bytes and JSON values, as lower-case hexadecimal."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json

REMEMBERED = Path(".snakemake") / "hashes"  # below the working folder, safe to delete
LARGE = 1_000_000  # bytes; smaller files are read faster than a note about them


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
    """SHA-256 of a file's content; a large file is read only where size or time of change are new.

    For files that are looked at in every run and change hardly ever, such as weights.
    """
    place = Path(path).resolve()
    if place.stat().st_size < LARGE:
        return sha256_file(place)
    note = _note_of(place)
    known = _noted(note)
    state, digest = _state(place), known.get(str(place), ["", ""])
    if digest[:-1] != state:
        digest = [*state, sha256_file(place)]
        write_json(note, {str(place): digest})
    return str(digest[-1])


def folder_listing(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Number and bytes of the files below a folder, and one hash of their names and contents.

    Files are read where size or time of change are new. What is noted of a file is the hash of its
    hash, so that no photograph can be told by the notes.
    """
    place = Path(folder).resolve()
    note = _note_of(place)
    known = _noted(note)
    found: dict[str, list[Any]] = {}
    for path in (path for path in place.rglob("*") if path.is_file()):
        name, state = path.relative_to(place).as_posix(), _state(path)
        before = known.get(name, [""])
        digest = before[-1] if before[:-1] == state else sha256_bytes(sha256_file(path).encode())
        found[name] = [*state, digest]
    if found != known:
        write_json(note, found)
    digests = {name: entry[-1] for name, entry in found.items()}
    total = sum(entry[0] for entry in found.values())
    return {"files": len(found), "bytes": total, "sha256": sha256_json(digests)}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _note_of(place: Path) -> Path:
    return REMEMBERED / f"{sha256_bytes(str(place).encode())[:32]}.json"


def _noted(note: Path) -> dict[str, list[Any]]:
    try:
        known: dict[str, list[Any]] = json.loads(note.read_text(encoding="utf-8"))
        return known if all(isinstance(entry, list) for entry in known.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}
