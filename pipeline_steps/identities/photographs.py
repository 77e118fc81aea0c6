"""Photographs in folders, zip and tar archives: which files are images, and in whose folder.

Files are listed by name and read into memory one at a time. Nothing of an archive is ever written
under a name that the archive chose. Of an archive that ends too early, as a broken download leaves
it, the whole files can be used.
"""

from __future__ import annotations

import mmap
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline_steps.io.images import BadImage
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar"})
LARGEST_MEMBER = 256 * 2**20  # bytes; no photograph is larger, but a hostile archive's member is
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Photograph:
    """One image file of a source.

    Attributes:
        source: name of the archive or folder, and the path inside it.
        folder: the folder it lies in; empty at the top of the source, for unsafe paths, and in
            folders that hold further folders with photographs.
        name: file name.
        read: see `Entry`.
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
        source: see `contents_of`.
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
    photographs: list[tuple[PurePosixPath, Entry]] = []
    folders: set[str] = set()
    occupied: set[str] = set()
    ignored = junk = 0
    for entry in sorted(contents.entries, key=lambda entry: natural_key(entry.path)):
        path = PurePosixPath(entry.path.replace("\\", "/"))
        if _is_junk(path):
            junk += not entry.is_folder
        elif entry.is_folder:
            folders.add(path.as_posix())
            occupied.add(path.parent.as_posix())
        else:
            occupied.update(parent.as_posix() for parent in path.parents)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                photographs.append((path, entry))
            else:
                ignored += 1
    # A folder of folders, such as TD_RGB_A_Set1, is nobody's; its name must not become a person.
    shelves = {grand.as_posix() for path, _ in photographs for grand in path.parent.parents}
    empty = sorted(folders - occupied, key=natural_key)
    return Listing(
        source.name,
        tuple(
            Photograph(
                f"{source.name}/{entry.path}", _owner(path, entry, shelves), path.name, entry.read
            )
            for path, entry in photographs
        ),
        tuple(PurePosixPath(path).name for path in empty),
        ignored,
        junk,
        contents.broken,
    )


def _is_junk(path: PurePosixPath) -> bool:
    """Whether an operating system left it behind: .DS_Store, __MACOSX, ._name, Thumbs.db."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return hidden or "__MACOSX" in path.parts or path.name.lower() in _JUNK_NAMES


def _owner(path: PurePosixPath, entry: Entry, shelves: set[str]) -> str:
    """The folder that says whose photograph it is; reading an unsafe one gives the reason."""
    shard = path.parent.suffix.lower() in ARCHIVE_SUFFIXES
    if shard or is_unsafe(entry.path) or path.parent.as_posix() in shelves:
        return ""
    return path.parent.name


def file_stem(name: str) -> str:
    """A file name's stem in characters that are safe everywhere."""
    return re.sub(r"[^\w.-]", "_", PurePosixPath(name).stem, flags=re.ASCII).lstrip(".") or "_"


def unique_stems(names: Sequence[tuple[str, str]]) -> list[str]:
    """Safe stems for (folder, file name) pairs, numbered where a folder has the same one twice.

    File systems that do not tell upper from lower case are counted with.
    """
    taken: dict[tuple[str, str], str] = {}
    for folder, name in names:
        stem = candidate = file_stem(name)
        number = 1
        while (folder, candidate.casefold()) in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken[folder, candidate.casefold()] = candidate
    return list(taken.values())


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
    """What a container holds, and what is wrong with it as a whole (empty: nothing)."""

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
    leaves = re.match(r"[/\\]|[A-Za-z]:", path) is not None
    return leaves or ".." in re.split(r"[/\\]", path) or "\0" in path


def _reader(
    name: str, fetch: Callable[[], bytes], *, size: int = 0, wrong: str = ""
) -> Callable[[], bytes]:
    """Reads a file by ``fetch``; ``wrong`` is why it cannot be read, where that is known.

    ``fetch`` opens the archive again for each file, so that threads can read side by side.
    """
    why = "unsafe path" if is_unsafe(name) else wrong
    if not why and size > LARGEST_MEMBER:
        why = "too large"

    def read() -> bytes:
        if why:
            raise BadImage(why, name)
        try:
            content = fetch()
        except Exception as error:  # zlib, struct, zipfile errors of a broken member, and OSError
            raise BadImage("unreadable", str(error)) from error
        if len(content) > LARGEST_MEMBER:
            raise BadImage("too large", name)
        if len(content) < size:
            raise BadImage("truncated", f"{len(content)} of {size} bytes")
        return content

    return read


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
            entries.append(Entry(inside, path.is_dir(), _reader(inside, path.read_bytes)))
    return Contents(tuple(entries), "; ".join(broken))


def _tar(path: Path) -> Contents:
    entries: list[Entry] = []
    length = path.stat().st_size
    broken = False

    def fetched(place: int, size: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(place)
            return stream.read(size)

    try:
        with tarfile.open(path, "r:") as archive:
            for item in archive:
                if item.isfile() or item.isdir():
                    fetch = partial(fetched, item.offset_data, item.size)
                    reader = _reader(item.name, fetch, size=item.size)
                    entries.append(Entry(item.name, item.isdir(), reader))
                broken |= item.offset_data + item.size > length
    except (tarfile.TarError, OSError, EOFError) as error:
        if not entries:
            return Contents((), f"{length} bytes that are no uncompressed tar archive ({error})")
        broken = True
    if not broken:
        return Contents(tuple(entries))
    begun = f"{length} bytes that end before the archive does; {len(entries)} files begin in it"
    return Contents(tuple(entries), begun)


def _zip(path: Path) -> Contents:
    def fetched(member: zipfile.ZipInfo) -> bytes:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            return stream.read(LARGEST_MEMBER + 1)

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        return _cut_zip(path, str(error))
    return Contents(tuple(_zipped(item, fetched) for item in members))


def _zipped(
    item: zipfile.ZipInfo, fetched: Callable[[zipfile.ZipInfo], bytes], wrong: str = ""
) -> Entry:
    wrong = wrong or ("encrypted" if item.flag_bits & 0x1 else "")
    reader = _reader(item.filename, partial(fetched, item), wrong=wrong)
    return Entry(item.filename, item.is_dir(), reader)


# The table of contents of a zip archive stands at its end. Without it, members are found by the
# headers that precede each of them. Source: PKWARE, .ZIP File Format Specification (APPNOTE
# 6.3.10), Sections 4.3.7 to 4.3.9 and 4.5.3.

_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800
_IN_EXTRA = 0xFFFFFFFF  # sizes beyond 4 GiB, which stand in the field that begins as follows
_LONG_SIZES = b"\x01\x00\x10\x00"


def _cut_zip(path: Path, error: str) -> Contents:
    def fetched(member: zipfile.ZipInfo) -> bytes:
        with path.open("rb") as stream:
            stream.seek(member.header_offset)
            return zipfile.ZipExtFile(stream, "r", member).read(LARGEST_MEMBER + 1)

    size = path.stat().st_size
    members: list[zipfile.ZipInfo] = []
    if size:  # of nothing there is no memory map
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
            members = list(_members(data))
    if not members:
        return Contents((), f"{size} bytes that are no zip archive ({error})")
    ends = [member.header_offset + member.compress_size for member in members]
    wrong = ["truncated" if end > size else "" for end in ends]
    whole = f"{wrong.count('')} of its files are whole"
    return Contents(
        tuple(_zipped(item, fetched, cut) for item, cut in zip(members, wrong, strict=True)),
        f"{size} bytes that end before the archive does; {whole}",
    )


def _members(data: mmap.mmap) -> Iterator[zipfile.ZipInfo]:
    """Members in their order, ``header_offset`` behind their headers; the last may be cut off."""
    place = data.find(_SIGNATURE, 0, 4)
    while place >= 0 and place + _HEADER.size <= len(data):
        _, _, flags, method, _, _, crc, size, _, name, extra = _HEADER.unpack_from(data, place)
        start = place + _HEADER.size + name + extra
        if start > len(data):
            return
        fields = data[place + _HEADER.size : start]
        if flags & _SIZES_FOLLOW:
            crc, size = _described(data, start)
        elif size == _IN_EXTRA and _LONG_SIZES in fields[name:]:
            (size,) = struct.unpack_from("<Q", fields, fields.index(_LONG_SIZES, name) + 12)
        member = zipfile.ZipInfo(
            fields[:name].decode("utf-8" if flags & _UTF8 else "cp437", errors="replace")
        )
        member.flag_bits, member.compress_type, member.CRC = flags, method, crc
        member.header_offset, member.compress_size = start, size
        member.file_size = 2 * LARGEST_MEMBER  # no limit: the content itself says where it ends
        yield member
        # A descriptor of 12 to 24 bytes may stand before the next header.
        place = data.find(_SIGNATURE, start + size, start + size + 28)


def _described(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Checksum and size of a member, from behind it; a size beyond the end where that is cut."""
    place = data.find(_DESCRIPTOR, start)
    while 0 <= place <= len(data) - 12:
        crc, size = struct.unpack_from("<2I", data, place + 4)
        if size == place - start:
            return crc, size
        place = data.find(_DESCRIPTOR, place + 1)
    return 0, len(data) - start + 1
