"""Photographs in archives and folders: listed by name, read into memory one at a time.

Nothing of an archive is ever written under a name that the archive chose.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.images import BadImage

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
LARGEST_MEMBER = 256 * 2**20  # bytes; no photograph is larger, but a hostile archive's member is
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Photograph:
    """One image file of a source.

    Attributes:
        source: name of the archive or folder, and the path inside it.
        folder: the folder it lies in; empty at the top of the source, and for unsafe paths.
        name: file name.
        read: returns the file's bytes; raises BadImage where they cannot be had.
    """

    source: str
    folder: str
    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        photographs: in natural order of their paths.
        empty_folders: folders with nothing in them.
        ignored: number of files that are no images by their name, leaving out system files.
    """

    photographs: tuple[Photograph, ...]
    empty_folders: tuple[str, ...]
    ignored: int


def list_photographs(source: Path) -> Listing:
    """List the image files of a zip archive or a folder, subfolders included.

    Raises:
        StepError: there is no such source, or it is neither a folder nor a readable zip archive.
    """
    if source.is_dir():
        return _listed(source.name, _folder_entries(source))
    if not source.is_file():
        raise StepError(f"source {source} does not exist: correct the path, or fetch the data")
    try:
        with zipfile.ZipFile(source) as archive:
            entries = list(_archive_entries(source, archive))
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise StepError(
            f"source {source} is no readable zip archive ({error}): download it again"
        ) from error
    return _listed(source.name, entries)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def file_stem(name: str) -> str:
    """A file name's stem in characters that are safe everywhere."""
    return re.sub(r"[^\w.-]", "_", PurePosixPath(name).stem, flags=re.ASCII).lstrip(".") or "_"


def unique_stems(names: Sequence[tuple[str, str]]) -> list[str]:
    """Safe stems for (folder, file name) pairs, numbered where a folder has the same one twice.

    File systems that do not tell upper from lower case are counted with.
    """
    taken: set[tuple[str, str]] = set()
    stems = []
    for folder, name in names:
        stem = candidate = file_stem(name)
        number = 1
        while (folder, candidate.casefold()) in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add((folder, candidate.casefold()))
        stems.append(candidate)
    return stems


@dataclass(frozen=True)
class _Entry:
    path: str  # inside the source, with forward slashes
    is_folder: bool
    read: Callable[[], bytes]


def _folder_entries(root: Path) -> Iterator[_Entry]:
    for path in root.rglob("*"):
        yield _Entry(path.relative_to(root).as_posix(), path.is_dir(), _file_reader(path))


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadImage("unreadable", str(error)) from error

    return read


def _archive_entries(path: Path, archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for member in archive.infolist():
        yield _Entry(member.filename, member.is_dir(), _member_reader(path, member))


def _member_reader(path: Path, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if _is_unsafe(member.filename):
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


def _is_unsafe(path: str) -> bool:
    """Whether a member's name would leave the folder that the archive is unpacked in."""
    return (
        path.startswith(("/", "\\"))
        or ".." in re.split(r"[/\\]", path)
        or re.match(r"[A-Za-z]:", path) is not None
        or "\0" in path
    )


def _is_junk(path: PurePosixPath) -> bool:
    """Files that operating systems leave behind: .DS_Store, __MACOSX, ._name, Thumbs.db."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return hidden or "__MACOSX" in path.parts or path.name.lower() in _JUNK_NAMES


def _listed(source: str, entries: Iterator[_Entry] | Sequence[_Entry]) -> Listing:
    photographs: list[Photograph] = []
    folders: set[str] = set()
    occupied: set[str] = set()
    ignored = 0
    for entry in sorted(entries, key=lambda entry: natural_key(entry.path)):
        path = PurePosixPath(entry.path.replace("\\", "/"))
        if _is_junk(path):
            continue
        if entry.is_folder:
            folders.add(path.as_posix())
            occupied.add(path.parent.as_posix())
            continue
        occupied.update(parent.as_posix() for parent in path.parents)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            ignored += 1
            continue
        # An unsafe path says nothing about whose photograph it is; reading it gives the reason.
        folder = "" if _is_unsafe(entry.path) else path.parent.name
        photographs.append(Photograph(f"{source}/{entry.path}", folder, path.name, entry.read))
    empty = tuple(PurePosixPath(path).name for path in sorted(folders - occupied, key=natural_key))
    return Listing(tuple(photographs), empty, ignored)
