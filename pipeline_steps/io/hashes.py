"""SHA-256 of files, bytes and JSON values, as lower-case hexadecimal."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any


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
