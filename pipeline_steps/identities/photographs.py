"""Photographs in folders and archives: which files are images, and in whose folder they lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline_steps.identities.containers import ARCHIVE_SUFFIXES, Entry, contents_of, is_unsafe
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Photograph:
    """One image file of a source.

    Attributes:
        source: name of the archive or folder, and the path inside it.
        folder: the folder it lies in; empty at the top of the source, for unsafe paths, and in
            folders that hold further folders with photographs.
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
        source: name of the archive or folder.
        photographs: in natural order of their paths.
        empty_folders: folders with nothing in them.
        ignored: number of files that are no images by their name, leaving out system files.
        junk: number of files that operating systems leave behind (.DS_Store, Thumbs.db, ...).
        broken: what is wrong with the source as a whole; empty for a whole one.
    """

    source: str
    photographs: tuple[Photograph, ...]
    empty_folders: tuple[str, ...]
    ignored: int
    junk: int = 0
    broken: str = ""


def list_photographs(source: Path, *, salvage: bool = False) -> Listing:
    """List the image files of a folder, a zip or a tar archive, subfolders included.

    Args:
        source: folder (tar archives in it are looked into), .zip or uncompressed .tar.
        salvage: list also an archive that ends too early, as far as its files are whole.

    Raises:
        StepError: there is no such source, or it is broken and is not to be salvaged.
    """
    if not source.exists():
        raise StepError(f"source {source} does not exist: correct the path, or fetch the data")
    if not source.is_dir() and source.suffix.lower() not in ARCHIVE_SUFFIXES:
        raise StepError(f"source {source} is neither a folder nor a .zip or .tar archive")
    contents = contents_of(source)
    if contents.broken and not salvage:
        raise StepError(
            f"source {source} is incomplete: {contents.broken}. Download it again, or let "
            "preparation use the whole files with prepare.on_broken_source: salvage"
        )
    return _listed(source.name, contents.entries, contents.broken)


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


def _is_junk(path: PurePosixPath) -> bool:
    """Files that operating systems leave behind: .DS_Store, __MACOSX, ._name, Thumbs.db."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return hidden or "__MACOSX" in path.parts or path.name.lower() in _JUNK_NAMES


def _listed(source: str, entries: Sequence[Entry], broken: str) -> Listing:
    photographs: list[tuple[PurePosixPath, Entry]] = []
    folders: set[str] = set()
    occupied: set[str] = set()
    ignored = junk = 0
    for entry in sorted(entries, key=lambda entry: natural_key(entry.path)):
        path = PurePosixPath(entry.path.replace("\\", "/"))
        if _is_junk(path):
            junk += not entry.is_folder
            continue
        if entry.is_folder:
            folders.add(path.as_posix())
            occupied.add(path.parent.as_posix())
            continue
        occupied.update(parent.as_posix() for parent in path.parents)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            ignored += 1
            continue
        photographs.append((path, entry))
    # A folder of folders, such as TD_RGB_A_Set1, is nobody's; its name must not become a person.
    shelves = {grand.as_posix() for path, _ in photographs for grand in path.parent.parents}
    empty = tuple(PurePosixPath(path).name for path in sorted(folders - occupied, key=natural_key))
    return Listing(
        source,
        tuple(
            Photograph(
                f"{source}/{entry.path}", _owner(path, entry, shelves), path.name, entry.read
            )
            for path, entry in photographs
        ),
        empty,
        ignored,
        junk,
        broken,
    )


def _owner(path: PurePosixPath, entry: Entry, shelves: set[str]) -> str:
    """The folder that says whose photograph it is; reading an unsafe one gives the reason."""
    shard = path.parent.suffix.lower() in ARCHIVE_SUFFIXES
    if shard or is_unsafe(entry.path) or path.parent.as_posix() in shelves:
        return ""
    return path.parent.name
