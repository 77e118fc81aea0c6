"""Files in folders, zip and tar archives: listed by name, read into memory one at a time.

Nothing of an archive is ever written under a name that the archive chose.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_steps.identities.cut_zip import CutZip, scan_cut_zip
from pipeline_steps.io.images import BadImage

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar"})
LARGEST_MEMBER = 256 * 2**20  # bytes; no photograph is larger, but a hostile archive's member is


@dataclass(frozen=True)
class Entry:
    """A file or folder of a container.

    Attributes:
        path: inside the container, with forward slashes; as the archive names it.
        is_folder: whether it is one.
        read: returns a file's bytes; raises BadImage where they cannot be had.
    """

    path: str
    is_folder: bool
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Contents:
    """What a container holds.

    Attributes:
        entries: its files and folders.
        broken: what is wrong with the container as a whole; empty for a whole one.
    """

    entries: tuple[Entry, ...]
    broken: str = ""


def contents_of(path: Path) -> Contents:
    """List a folder, a zip archive or an uncompressed tar archive.

    Tar archives inside a folder (the shards of a WebDataset) are listed with their members. An
    archive that ends too early is listed as far as its members are whole.
    """
    if path.is_dir():
        return _folder(path)
    return _tar(path) if path.suffix.lower() == ".tar" else _zip(path)


def is_unsafe(path: str) -> bool:
    """Whether a member's name would leave the folder that the archive is unpacked in."""
    return (
        path.startswith(("/", "\\"))
        or ".." in re.split(r"[/\\]", path)
        or re.match(r"[A-Za-z]:", path) is not None
        or "\0" in path
    )


def _folder(root: Path) -> Contents:
    entries: list[Entry] = []
    broken = []
    for path in root.rglob("*"):
        inside = path.relative_to(root).as_posix()
        if path.suffix.lower() == ".tar" and path.is_file():
            shard = _tar(path)
            entries += [
                Entry(f"{inside}/{item.path}", item.is_folder, item.read) for item in shard.entries
            ]
            broken += [f"{inside}: {shard.broken}"] if shard.broken else []
        else:
            entries.append(Entry(inside, path.is_dir(), _file_reader(path)))
    return Contents(tuple(entries), "; ".join(broken))


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadImage("unreadable", str(error)) from error

    return read


def _zip(path: Path) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        return _cut_zip(path, scan_cut_zip(path), str(error))
    return Contents(
        tuple(Entry(item.filename, item.is_dir(), _zip_reader(path, item)) for item in members)
    )


def _zip_reader(path: Path, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if is_unsafe(member.filename):
            raise BadImage("unsafe path", member.filename)
        if member.flag_bits & 0x1:
            raise BadImage("encrypted", member.filename)
        if member.file_size > LARGEST_MEMBER:
            raise BadImage("too large", f"{member.file_size} bytes")
        try:
            # Opened again for each file, so that threads can read side by side.
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                content = stream.read(LARGEST_MEMBER + 1)
        except Exception as error:  # zlib, struct and zipfile errors of a broken member
            raise BadImage("unreadable", str(error)) from error
        if len(content) > LARGEST_MEMBER:
            raise BadImage("too large", member.filename)
        return content

    return read


def _cut_zip(path: Path, cut: CutZip, error: str) -> Contents:
    def reader(index: int) -> Callable[[], bytes]:
        def read() -> bytes:
            member = cut.members[index]
            if is_unsafe(member.name):
                raise BadImage("unsafe path", member.name)
            return member.read(path, LARGEST_MEMBER)

        return read

    entries = [
        Entry(member.name, member.name.endswith("/"), reader(index))
        for index, member in enumerate(cut.members)
    ]
    whole = sum(member.whole for member in cut.members)
    size = path.stat().st_size if path.is_file() else 0
    if not cut.members:
        return Contents((), f"{size} bytes that are no zip archive ({error})")
    return Contents(
        tuple(entries),
        f"{size} bytes that end before the archive does; {whole} of its files are whole",
    )


def _tar(path: Path) -> Contents:
    entries: list[Entry] = []
    size = path.stat().st_size
    broken = ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() or member.isdir():
                    reader = _tar_reader(path, member.name, member.offset_data, member.size)
                    entries.append(Entry(member.name, member.isdir(), reader))
                if member.offset_data + member.size > size:
                    broken = "cut"
    except (tarfile.TarError, OSError, EOFError) as error:
        if not entries:
            return Contents((), f"{size} bytes that are no uncompressed tar archive ({error})")
        broken = "cut"
    if broken:
        broken = f"{size} bytes that end before the archive does; {len(entries)} files begin in it"
    return Contents(tuple(entries), broken)


def _tar_reader(path: Path, name: str, offset: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        if is_unsafe(name):
            raise BadImage("unsafe path", name)
        if size > LARGEST_MEMBER:
            raise BadImage("too large", f"{size} bytes")
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
        except OSError as error:
            raise BadImage("unreadable", str(error)) from error
        if len(content) < size:
            raise BadImage("truncated", f"{len(content)} of {size} bytes")
        return content

    return read
