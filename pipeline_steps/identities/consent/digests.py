"""Hashes in files: those that stand written in them, and those of what they hold.

Archives, Parquet tables, and images inside pages are looked into.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_steps.io.hashes import sha256_bytes, sha256_file

WRITTEN = re.compile(rb"(?<![0-9A-Za-z])[0-9a-fA-F]{64}(?![0-9A-Za-z])")
EMBEDDED = re.compile(rb"data:[\w/+.-]+;base64,([A-Za-z0-9+/=\s]+)")
PAGES = frozenset({".html", ".svg", ".xml", ".md"})
ARCHIVES = frozenset({".tar", ".zip", ".npz"})
IMAGES = frozenset({".png", ".jpg", ".jpeg"})


def fingerprint(digest: str) -> str:
    """What a list of removed files keeps of a hash: the SHA-256 of its hexadecimal digits.

    A file that turns up later can be told by it, but the hash itself does not stay behind.
    """
    return sha256_bytes(digest.encode("ascii"))


def all_hashes(path: Path) -> set[str]:
    """Hashes written in a file, and of the file and of what it holds; lower-case hexadecimal."""
    if path.is_symlink() and not path.exists():
        return set()
    return {sha256_file(path)} | written_hashes(path) | held_hashes(path)


def written_hashes(path: Path) -> set[str]:
    """SHA-256 values that stand in a file as text, also compressed in a table or an archive."""
    if path.suffix in ARCHIVES:
        return {found for _, content in _members(path) for found in hex_strings(content)}
    if path.suffix == ".parquet":
        return hex_strings(_table_text(path))
    if path.suffix == ".safetensors":
        with path.open("rb") as stream:
            return hex_strings(stream.read(8 + int.from_bytes(stream.read(8), "little")))
    return hex_strings(path.read_bytes())


def held_hashes(path: Path) -> set[str]:
    """Hashes of the members of an archive and of the images inside a page."""
    if path.suffix in ARCHIVES:
        return {sha256_bytes(content) for _, content in _members(path)}
    if path.suffix in PAGES:
        return {sha256_bytes(content) for content in _embedded(path.read_bytes())}
    return set()


def hex_strings(content: bytes) -> set[str]:
    """All runs of exactly 64 hexadecimal digits, in small letters."""
    return {match.group().decode("ascii").lower() for match in WRITTEN.finditer(content)}


def hex_strings_of(value: Any) -> set[str]:
    """All SHA-256 values in the text of a value."""
    return hex_strings(str(value).encode())


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()
        return
    with zipfile.ZipFile(path) as archive_:
        for name in archive_.namelist():
            yield name, archive_.read(name)


def _table_text(path: Path) -> bytes:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    texts = [str(dict(table.schema.metadata or {}))]
    for column in table.columns:
        texts += [str(value) for value in column.unique().to_pylist()] if _text(column) else []
    return io.StringIO("\n".join(texts)).getvalue().encode()


def _text(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _embedded(content: bytes) -> Iterator[bytes]:
    for match in EMBEDDED.finditer(content):
        try:
            yield base64.b64decode(match.group(1))
        except binascii.Error:
            continue
