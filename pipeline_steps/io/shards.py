"""Images of a folder in one tar archive inside it, `images.tar`, in the place of a file each.

The archive is a shard of a WebDataset: `<folder's name>/<file>`, one member per image. Who reads
`<folder>/<file>` by `content_of` need not know where it lies. A file goes before a member, so
images that are made anew are written as files and packed once the folder is complete.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pipeline_steps.io.atomic import atomic_path, write_bytes
from pipeline_steps.io.hashes import sha256_bytes, sha256_file

SHARD = "images.tar"


def content_of(path: Path) -> bytes:
    """Bytes of a file, or of the member of the shard beside it. Raises OSError for neither."""
    if (place := _place(path)) is None:
        return path.read_bytes()
    with path.with_name(SHARD).open("rb") as stream:
        stream.seek(place[0])
        return stream.read(place[1])


def hash_of(path: Path) -> str:
    """SHA-256 of what `content_of` gives; empty where there is nothing."""
    if path.is_file():
        return sha256_file(path)
    return "" if _place(path) is None else sha256_bytes(content_of(path))


def pack(folder: Path, names: Iterable[str]) -> None:
    """Make some images of a folder its shard, atomically; what it held beside them goes."""
    shard, wanted = folder / SHARD, sorted(names)
    if not any((folder / name).is_file() for name in wanted) and wanted == sorted(_held(shard)):
        return
    with (
        atomic_path(shard) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in wanted:
            add_member(archive, f"{folder.name}/{name}", content_of(folder / name))
    for name in wanted:
        (folder / name).unlink(missing_ok=True)


def unpack(folder: Path) -> None:
    """Make a folder's shard, where there is one, files again."""
    shard = folder / SHARD
    for name in _held(shard):
        write_bytes(folder / name, content_of(folder / name))
    shard.unlink(missing_ok=True)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive; owner, time and mode are fixed: equal files, equal bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _place(path: Path) -> tuple[int, int] | None:
    """Offset and length of a file in the shard beside it; None where it is no member."""
    return None if path.is_file() else _held(path.with_name(SHARD)).get(path.name)


def _held(shard: Path) -> dict[str, tuple[int, int]]:
    try:
        state = shard.stat()
    except OSError:
        return {}
    return _members(shard, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _members(shard: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Name without its folder to offset and length; the last arguments tell versions apart."""
    try:
        with tarfile.open(shard, "r:") as archive:
            return {Path(m.name).name: (m.offset_data, m.size) for m in archive if m.isfile()}
    except tarfile.TarError:
        return {}  # as if all were missing
