"""What of a study is one person's: files by their place, and anything else by hashes.

The ledger says of each file whose it is. Hashes are searched for in all files: those that stand
written in them, and those of what they hold; archives, Parquet tables and images inside pages are
looked into.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.io.hashes import sha256_bytes, sha256_file
from pipeline_steps.io.images import BadImage
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import ARTEFACTS, People, entry_of
from pipeline_steps.study.settings.photographs import PrepareSettings

SNAKEMAKE = ("metadata", "incomplete", "log", "slurm_logs", "hashes", "listings")
"""Folders of .snakemake in which jobs leave something."""


@dataclass(frozen=True)
class Hit:
    """A file in which something of an identity is still there."""

    path: str
    fingerprint: str


def hashes_of_identity(results: Path, items: Iterable[Item], identity: str) -> set[str]:
    """Hashes of an identity's own files, and those that its rows and records hold.

    A hash that also stands in somebody else's records, such as the base model's, is not its own.
    """
    own: set[str] = set()
    shared: set[str] = set()
    for item in items:
        path = results / item.path
        if item.owner == identity:
            own |= all_hashes(path)
        elif item.people in (People.ONE, People.NONE):
            shared |= written_hashes(path)
        elif item.people in (People.ALL, People.ROWS):
            mine, others = rows_of(path, identity)
            own |= mine
            shared |= others
    return own - shared


def rows_of(path: Path, identity: str) -> tuple[set[str], set[str]]:
    """Hashes in the records of a table that are about an identity, and in those about others."""
    from pipeline_steps.io.manifests import read_manifest  # pandas loads slowly

    try:
        if path.suffix == ".parquet":
            frame = read_manifest(path)
            if "identity" not in frame:
                return set(), set()
            mine = frame["identity"] == identity
            return _texts(frame[mine].to_dict("list")), _texts(frame[~mine].to_dict("list"))
        if path.suffix == ".safetensors" and "features" in path.parts:
            found = load_features(path)
            lists = [json.loads(found.metadata.get(key, "[]")) for key in ("images", "sources")]
            pairs = [pair for of in lists for pair in zip(found.files, of, strict=False)]
            return (
                {digest for file, digest in pairs if file.split("/")[0] == identity},
                {digest for file, digest in pairs if file.split("/")[0] != identity},
            )
        if path.suffix == ".json":
            return _json_parts(json.loads(path.read_text(encoding="utf-8")), identity)
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            named = [row for row in rows if row.get("identity") == identity]
            return _texts(named), _texts([row for row in rows if row.get("identity") != identity])
    except (StepError, ValueError, OSError):
        pass  # a broken table tells nothing; it goes as a whole
    return set(), set()


def photograph_hashes(settings: PrepareSettings, identity: str) -> tuple[set[str], list[str]]:
    """Hashes of an identity's photographs, and the sources that could not be read for them."""
    from pipeline_steps.identities.candidates import identities_of, list_sources

    found: set[str] = set()
    unread: list[str] = []
    for source in settings.sources:
        alone = settings.model_copy(update={"sources": (source,), "on_broken_source": "salvage"})
        try:
            listings = list_sources(alone, {})
            named = identities_of(alone, listings)
            for photograph in listings[0].photographs:
                if named[photograph.where] == identity:
                    found.add(sha256_bytes(photograph.read()))
        except (StepError, BadImage, OSError):
            unread.append(source)
    return found, unread


def search(
    results: Path, fingerprints: Iterable[str], more: Sequence[Path] = (), root: Path = Path()
) -> tuple[list[Hit], int]:
    """Look for hashes in all files of a study's results and of the workflow's notes.

    Every file is hashed, every hash written in it is read, and so are members of archives, tables
    and images inside pages.

    Args:
        results: the results folder.
        fingerprints: of the hashes.
        more: further files to look into.
        root: the working folder.

    Returns:
        What was found, and how many files were looked into.
    """
    wanted = set(fingerprints)
    hits, count = [], 0
    for path in [*searched(results, root), *more]:
        count += 1
        for digest in sorted(all_hashes(path)):
            if fingerprint(digest) in wanted:
                hits.append(Hit(path.as_posix(), fingerprint(digest)))
    return hits, count


def searched(results: Path, root: Path = Path()) -> Iterator[Path]:
    """Files of the results folder and of the workflow's notes."""
    for path in sorted(files_below(results)):
        yield results / path
    yield from notes(root)


def notes(root: Path) -> Iterator[Path]:
    """Files that Snakemake keeps about jobs."""
    for name in SNAKEMAKE:
        folder = root / ".snakemake" / name
        for path in sorted(files_below(folder)) if folder.is_dir() else ():
            yield folder / path


def _texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {found for item in value.values() for found in _texts(item)}
    if isinstance(value, list):
        return {found for item in value for found in _texts(item)}
    return hex_strings_of(value) if isinstance(value, str) else set()


def _json_parts(value: Any, identity: str) -> tuple[set[str], set[str]]:
    """Hashes below the identity's key or in its records, and all others."""
    if isinstance(value, dict):
        if value.get("identity") == identity:
            return _texts(value), set()
        parts = [
            (_texts(item), set()) if key == identity else _json_parts(item, identity)
            for key, item in value.items()
        ]
    elif isinstance(value, list):
        parts = [_json_parts(item, identity) for item in value]
    else:
        return set(), _texts(value)
    return (
        {found for mine, _ in parts for found in mine},
        {found for _, others in parts for found in others},
    )


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


ANY_FIELD = r"\{\w+\}"


@dataclass(frozen=True)
class Item:
    """A file of a study's results.

    Attributes:
        path: relative to the results folder.
        people: whose it is; None for a file that the project does not make.
        owner: the identity that it is alone of, if it is anybody's.
        why: what it is, for a list.
    """

    path: str
    people: People | None
    owner: str | None
    why: str


def item_of(path: str) -> Item:
    """Sort one file, by its place.

    Args:
        path: relative to the results folder, with slashes.
    """
    entry = entry_of(path)
    if entry is None:
        return Item(path, None, None, "no file that the project makes")
    people = entry.people
    owner = entry.fields["identity"] if people is People.ONE else None
    what = entry.artefact.what if people is People.ALL else people.value
    return Item(path, people, owner, f"{owner} alone" if owner else what)


def inventory(results: Path) -> list[Item]:
    """All files below a results folder, in order of their paths."""
    return [item_of(path) for path in sorted(files_below(results))]


def owners_in(results: Path) -> set[str]:
    """Identities of whom anything of their own lies in a results folder; opens no file."""
    found = set()
    for artefact in ARTEFACTS.values():
        if artefact.people is not People.ONE:
            continue
        below, _, rest = artefact.path.partition("{identity}")
        name = f"*{rest.partition('/')[0]}"  # the folder or file that is called after somebody
        for pattern in globs_of(below + re.sub(ANY_FIELD, "*", name)):
            for path in results.glob(pattern):
                inside = path / "x" if path.is_dir() else path
                entry = entry_of(inside.relative_to(results).as_posix())
                if entry is not None and entry.people is People.ONE:
                    found.add(entry.fields["identity"])
    return found


def globs_of(template: str) -> list[str]:
    """Patterns of files whose path fits a template."""
    for field, shapes in {"{source}": ("*", "*/*/*"), "{variant}": ("*/*/*",)}.items():
        if field in template:
            return [re.sub(ANY_FIELD, "*", template.replace(field, shape)) for shape in shapes]
    return [re.sub(ANY_FIELD, "*", template)]


def files_below(folder: Path) -> Iterator[str]:
    """Files and links below a folder, relative to it, hidden ones included."""
    for path in folder.rglob("*"):
        if path.is_symlink() or path.is_file():
            yield path.relative_to(folder).as_posix()
