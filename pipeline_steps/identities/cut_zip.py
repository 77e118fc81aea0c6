"""Whole files of a zip archive that ends too early, as a broken download leaves it.

The table of contents of a zip archive stands at its end. Without it, members are found by the
headers that precede each of them. Source: PKWARE, .ZIP File Format Specification (APPNOTE 6.3.10),
Sections 4.3.7 to 4.3.9 and 4.5.3.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.io.images import BadImage

_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE = b"PK\x03\x04"
_DESCRIPTOR = b"PK\x07\x08"
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_STORED, _DEFLATED = 0, 8
_IN_EXTRA = 0xFFFFFFFF
_BLOCK = 2**20


@dataclass(frozen=True)
class CutMember:
    """A member of an archive without table of contents.

    Attributes:
        name: as the archive has it.
        start, size: of its stored bytes in the archive; the size is 0 where it is not known.
        method: 0 stored, 8 deflated.
        checksum: CRC-32 of its content; None where it is not known.
        whole: whether all its bytes are there.
        encrypted: whether it needs a password.
    """

    name: str
    start: int
    size: int
    method: int
    checksum: int | None
    whole: bool
    encrypted: bool

    def read(self, path: Path, largest: int) -> bytes:
        """The member's content.

        Raises:
            BadImage: it is cut off, encrypted, damaged or larger than ``largest`` bytes.
        """
        if not self.whole:
            raise BadImage("truncated", self.name)
        if self.encrypted:
            raise BadImage("encrypted", self.name)
        if self.size > largest:
            raise BadImage("too large", self.name)
        with path.open("rb") as stream:
            stream.seek(self.start)
            stored = stream.read(self.size)
        try:
            content = stored if self.method == _STORED else _inflated(stored, largest)
        except zlib.error as error:
            raise BadImage("unreadable", str(error)) from error
        if self.checksum is not None and zlib.crc32(content) != self.checksum:
            raise BadImage("unreadable", f"{self.name}: wrong checksum")
        return content


@dataclass(frozen=True)
class CutZip:
    """Members in their order; the last one may be cut off."""

    members: tuple[CutMember, ...]


def scan_cut_zip(path: Path) -> CutZip:
    """Find the members of an archive by their own headers; none where there are no such headers."""
    if not path.is_file() or path.stat().st_size == 0:
        return CutZip(())
    members: list[CutMember] = []
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        place = data.find(_SIGNATURE, 0, 4)
        while place >= 0:
            member = _member(data, place)
            if member is None:
                break
            members.append(member)
            if not member.whole:
                break
            # A descriptor of 12 to 24 bytes may stand before the next header.
            end = member.start + member.size
            place = data.find(_SIGNATURE, end, end + 28)
    return CutZip(tuple(members))


def _member(data: mmap.mmap, place: int) -> CutMember | None:
    """The member whose header begins at ``place``; None where the header itself is cut off."""
    if place + _HEADER.size > len(data):
        return None
    header = _HEADER.unpack_from(data, place)
    _, _, flags, method, _, _, checksum, size, _, name_length, extra_length = header
    start = place + _HEADER.size + name_length + extra_length
    if start > len(data):
        return None
    raw = data[place + _HEADER.size : place + _HEADER.size + name_length]
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", errors="replace")
    encrypted = bool(flags & _ENCRYPTED)
    if size == _IN_EXTRA:
        size = _long_size(data[start - extra_length : start])
    if flags & _SIZES_FOLLOW and size == 0:
        found = _size_by_content(data, start, method)
        return CutMember(name, start, found or 0, method, None, found is not None, encrypted)
    whole = start + size <= len(data)
    known = None if encrypted else checksum
    return CutMember(name, start, size, method, known, whole, encrypted)


def _long_size(extra: bytes) -> int:
    """Stored size in the ZIP64 field: the second of its 8-byte numbers."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1 and length >= 16:
            return int(struct.unpack_from("<Q", extra, place + 12)[0])
        place += 4 + length
    return _IN_EXTRA


def _size_by_content(data: mmap.mmap, start: int, method: int) -> int | None:
    """Stored size of a member whose header does not tell it; None where its end is not there."""
    if method == _DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        place = start
        while not stream.eof and place < len(data):
            block = data[place : place + _BLOCK]
            try:
                stream.decompress(block)
            except zlib.error:
                return None
            place += len(block)
        return place - len(stream.unused_data) - start if stream.eof else None
    end = data.find(_DESCRIPTOR, start)
    while end >= 0:
        if end + 12 <= len(data) and struct.unpack_from("<I", data, end + 8)[0] == end - start:
            return end - start
        end = data.find(_DESCRIPTOR, end + 1)
    return None


def _inflated(stored: bytes, largest: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(stored, largest + 1)
    if len(content) > largest:
        raise BadImage("too large")
    return content
