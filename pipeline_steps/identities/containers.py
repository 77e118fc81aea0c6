"""Folders, zip and tar archives as containers of files.

Files are listed by name and read into memory one at a time, never through a link that leads out of
the container. Nothing of an archive is ever written under a name that the archive chose. Of an
archive that ends too early, as a broken download leaves it, the whole files can be used.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline_steps.io.images import BadImage
from pipeline_steps.runtime.errors import StepError

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar"})
LARGEST_MEMBER = 256 * 2**20  # bytes; no photograph is larger, but a hostile archive's member is
MOST_MEMBERS = 500_000  # of one archive, all of whose names are held at once
LARGEST_DIRECTORY = 48 * 2**20  # bytes of a zip archive's table of contents: about as many members


@dataclass(frozen=True)
class Entry:
    """A file or folder of a container.

    Attributes:
        path: inside the container, with forward slashes; as the archive names it.
        is_folder: whether it is one.
        read: returns a file's bytes, or so many of its first; raises BadImage where they cannot be
            had.
        shard: path of the tar archive inside a folder that it lies in; empty for none.
        target: where a link inside a folder leads, inside it.
    """

    path: str
    is_folder: bool
    read: Callable[..., bytes] = field(compare=False, repr=False)
    shard: str = ""
    target: str = ""


@dataclass(frozen=True)
class Contents:
    """What a container holds, and what is wrong with it as a whole (empty: nothing)."""

    entries: tuple[Entry, ...]
    broken: str = ""


def contents_of(path: Path) -> Contents:
    """List a folder, a zip archive or an uncompressed tar archive.

    Tar archives inside a folder (the shards of a WebDataset) are listed with their members. An
    archive that ends too early is listed as far as its members are whole.

    Raises:
        StepError: an archive has more members than can be listed in bounded memory.
    """
    if path.is_dir():
        return _folder(path)
    return _tar(path) if path.suffix.lower() == ".tar" else _zip(path)


def is_unsafe(path: str) -> bool:
    """Whether a member's name would leave the folder that the archive is unpacked in."""
    leaves = re.match(r"[/\\]|[A-Za-z]:", path) is not None
    return leaves or ".." in re.split(r"[/\\]", path) or "\0" in path


def readable(name: str) -> str:
    """A name whose bytes are no UTF-8, as text that can be written: in Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")
    return name


def _reader(
    name: str, fetch: Callable[[int], bytes], *, size: int = 0, wrong: str = ""
) -> Callable[..., bytes]:
    """Reads a file by ``fetch``; ``wrong`` is why it cannot be read, where that is known.

    ``fetch`` opens the archive again for each file, so that threads can read side by side.
    """
    why = "unsafe path" if is_unsafe(name) else wrong

    def read(most: int | None = None) -> bytes:
        if why or (size > LARGEST_MEMBER and most is None):
            raise BadImage(why or "too large", name)
        try:
            content = fetch(LARGEST_MEMBER + 1 if most is None else most)
        except Exception as error:  # zlib, struct, zipfile errors of a broken member, and OSError
            raise BadImage("unreadable", str(error)) from error
        if len(content) > LARGEST_MEMBER:
            raise BadImage("too large", name)
        if most is None and len(content) < size:
            raise BadImage("truncated", f"{len(content)} of {size} bytes")
        return content

    return read


def _folder(root: Path) -> Contents:
    def fetched(path: Path, most: int) -> bytes:
        with path.open("rb") as stream:
            return stream.read(most)

    entries: list[Entry] = []
    broken = []
    top = root.resolve()
    for path in root.rglob("*"):
        inside = readable(path.relative_to(root).as_posix())
        real = Path(os.path.realpath(path)) if path.is_symlink() else None
        leaves = real is not None and not real.is_relative_to(top)
        if path.suffix.lower() == ".tar" and path.is_file() and not leaves:
            shard = _tar(path)
            entries += [
                Entry(f"{inside}/{item.path}", item.is_folder, item.read, inside)
                for item in shard.entries
            ]
            broken += [f"{inside}: {shard.broken}"] if shard.broken else []
        else:
            wrong = "" if path.is_file() else "no regular file"
            wrong = "link out of the source" if leaves else wrong
            target = "" if real is None or leaves else real.relative_to(top).as_posix()
            read = _reader(inside, partial(fetched, path), wrong=wrong)
            entries.append(Entry(inside, path.is_dir(), read, target=readable(target)))
    return Contents(tuple(entries), "; ".join(broken))


def _tar(path: Path) -> Contents:
    entries: list[Entry] = []
    length = path.stat().st_size
    broken = False

    def fetched(place: int, size: int, most: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(place)
            return stream.read(min(size, most))

    try:
        with tarfile.open(path, "r:") as archive:
            for item in archive:
                if len(entries) == MOST_MEMBERS:
                    raise _too_many(path)
                name, wrong = readable(item.name), "" if item.isfile() else "no regular file"
                fetch = partial(fetched, item.offset_data, item.size)
                reader = _reader(name, fetch, size=item.size, wrong=wrong)
                entries.append(Entry(name, item.isdir(), reader))
                broken |= item.offset_data + item.size > length
    except (tarfile.TarError, OSError, EOFError) as error:
        if not entries:
            return Contents((), f"{length} bytes that are no uncompressed tar archive ({error})")
        broken = True
    if not broken:
        return Contents(tuple(entries))
    begun = f"{length} bytes that end before the archive does; {len(entries)} files begin in it"
    return Contents(tuple(entries), begun)


def _too_many(path: Path) -> StepError:
    return StepError(f"{path} has more than about {MOST_MEMBERS} files: split it, or unpack it")


def _zip(path: Path) -> Contents:
    if _directory_size(path) > LARGEST_DIRECTORY:
        raise _too_many(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        return _cut_zip(path, str(error))
    large = ["too large" if item.file_size > LARGEST_MEMBER else "" for item in members]
    return Contents(tuple(map(partial(_zipped, path), members, large)))


def _directory_size(path: Path) -> int:
    """Bytes of a zip archive's table of contents by the record at its end; 0 where there is none.

    Source: APPNOTE 6.3.10, Sections 4.3.14 to 4.3.16.
    """
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, 2**16 + 22 + 76), os.SEEK_END)
        end = stream.read()
    short, long = end.rfind(b"PK\5\6"), end.rfind(b"PK\6\6")
    if not 0 <= short <= len(end) - 16:
        return 0
    (size,) = struct.unpack_from("<I", end, short + 12)
    if size == _IN_EXTRA and 0 <= long <= len(end) - 48:
        (size,) = struct.unpack_from("<Q", end, long + 40)
    return int(size)


def _zipped(path: Path, item: zipfile.ZipInfo, wrong: str = "") -> Entry:
    name = item.filename
    if not item.flag_bits & _UTF8 and not name.isascii():
        with suppress(UnicodeError):  # some write UTF-8 and do not say so
            name = name.encode("cp437").decode()
    wrong = wrong or ("encrypted" if item.flag_bits & 0x1 else "")
    return Entry(name, item.is_dir(), _reader(name, partial(_unzipped, path, item), wrong=wrong))


def _unzipped(path: Path, member: zipfile.ZipInfo, most: int) -> bytes:
    """Content of a member; the archive's table of contents is not read again for it."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        signature, *_, name, extra = _HEADER.unpack(stream.read(_HEADER.size))
        if signature[:4] != _SIGNATURE:
            raise zipfile.BadZipFile("no header where the member should begin")
        stream.seek(name + extra, 1)
        size = min(most, member.file_size)  # one that lies about it has another checksum, too
        return zipfile.ZipExtFile(stream, "r", member).read(size)


# The table of contents of a zip archive stands at its end. Without it, members are found by the
# headers that precede each of them. Source: PKWARE, .ZIP File Format Specification (APPNOTE
# 6.3.10), Sections 4.3.7 to 4.3.9 and 4.5.3.

_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800
_IN_EXTRA = 0xFFFFFFFF  # sizes beyond 4 GiB, which stand in the field that begins as follows
_LONG_SIZES = b"\x01\x00\x10\x00"


def _cut_zip(path: Path, error: str) -> Contents:
    size = path.stat().st_size
    members: list[tuple[zipfile.ZipInfo, int]] = []
    if size:  # of nothing there is no memory map
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
            members = list(_members(data))
    if not members:
        return Contents((), f"{size} bytes that are no zip archive ({error})")
    wrong = ["truncated" if end > size else "" for _, end in members]
    return Contents(
        tuple(_zipped(path, item, cut) for (item, _), cut in zip(members, wrong, strict=True)),
        f"{size} bytes that end before the archive does; {wrong.count('')} of its files are whole",
    )


def _members(data: mmap.mmap) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """Members in their order, and where each ends; the last may be cut off."""
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
        member.header_offset, member.compress_size = place, size
        member.file_size = 2 * LARGEST_MEMBER  # no limit: the content itself says where it ends
        yield member, start + size
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
