"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline_steps.runtime.errors import write_error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; rename it into place when the block succeeds.

    The caller writes a file or a folder at the yielded path. Parents are made. The temporary name
    keeps the suffix, since many writers choose their format by it. On an exception it is removed
    and an existing ``path`` stays as it was.

    Raises:
        FileNotFoundError: the block ended without writing the yielded path.
        StepError: the disk is full or cannot be written for another reason of its own.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            # A folder cannot replace a folder in one rename; the old one goes first.
            shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except OSError as error:
        # A write has no file name; an error that names another file is about reading that one.
        named = Path(error.filename or temporary)
        ours = temporary in (named, *named.parents) or named in (target, *target.parents)
        sentence = write_error(error, target) if ours else None
        if sentence is None:
            raise
        raise sentence from error
    finally:
        _remove(temporary)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8 with Unix line ends."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as canonical JSON: see :func:`json_text`."""
    write_text(path, json_text(obj))


def json_text(obj: Any) -> str:
    """Canonical JSON: equal objects give equal bytes (sorted keys, indent 1, final newline).

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    return json.dumps(obj, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a full or broken disk has been told of already
            path.unlink(missing_ok=True)
