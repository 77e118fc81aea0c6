"""Downloads that go on where they stopped, and that replace a file only by the right one."""

from __future__ import annotations

import fcntl
import gzip
import http.client
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress

BLOCK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
STALLS = 3  # attempts in a row that bring nothing
PAUSE = 2.0  # seconds before another attempt, doubled each time
PASSING = (408, 429, 500, 502, 503, 504)  # answers that another attempt may better
GONE = (401, 403, 404, 410)
ARCHIVES = (".zip", ".tar.gz")
PINNED = re.compile(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}")
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    *(NotImplementedError, RuntimeError),  # of zipfile: compression, encryption
)

log = get_logger("download")


class _Cut(Exception):
    """The connection ended before the file did."""


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    why_unfit: Callable[[Path], str] = lambda _: "",
) -> None:
    """Fetch a file.

    What has arrived lies in ``<target>.part``; after a cut connection or a stopped program the
    next attempt asks for the rest only, if the server still has the same file. An existing target
    is replaced in one rename, and only by a whole file with the right hash.

    Args:
        url: http or https address.
        target: Where the file goes; folders are made.
        sha256: Its hash; None: not known, a file of which nothing is unfit is taken.
        why_unfit: Says of a file without a known hash why it cannot be the one that is meant.

    Raises:
        StepError: the address cannot be reached or has no such file, the connection keeps
            breaking, the disk is too small, or the file has another hash (it is thrown away).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _alone(part):
        _fetch_all(url, part)
        found = sha256_file(part)
        if sha256 is not None and found != sha256.lower():
            _forget(part)
            kept = f"; the present {target} is kept" if target.exists() else ""
            raise StepError(
                f"{url} gave a file with SHA-256 {found}, the registry says {sha256}: it was "
                f"thrown away{kept}. Use another source, or correct config/models.yaml"
            )
        if sha256 is None and (why := why_unfit(part)):
            _forget(part)
            raise StepError(f"{url} gave {why}: it was thrown away. Use another source")
        part.replace(target)
        _forget(part)


def download_package(requirement: str, folder: Path) -> Path:
    """Fetch the source archive of a Python package from the index that pip is set up for.

    Args:
        requirement: ``<name>==<version> --hash=sha256:<hash of the archive>``, as pip reads it. The
            hash is needed: pip runs what it has fetched to learn the package's name.
        folder: Where the archive goes, an empty one.

    Raises:
        StepError: the requirement has no version or hash, or pip cannot fetch the archive.
    """
    if not PINNED.fullmatch(requirement):
        raise StepError(
            f"pypi:{requirement} is no source: pypi:<name>==<version> --hash=sha256:<hash> expected"
        )
    wanted = folder / "requirements.txt"
    wanted.write_text(requirement, "utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-input", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), "--requirement", str(wanted)], capture_output=True, text=True
    )
    wanted.unlink()
    found = [path for path in folder.iterdir() if path.name.endswith(ARCHIVES)]
    if done.returncode or len(found) != 1:
        told = " ".join((done.stderr.partition("ERROR: ")[2] or done.stderr).split())
        raise StepError(f"pip cannot fetch {requirement.split()[0]}: {told}")
    return found[0]


def extract(
    archive: Path,
    folder: Path,
    files: Mapping[str, str | None],
    why_unfit: Callable[[Path, str], str] = lambda _, __: "",
) -> None:
    """Take named files out of an archive, of the kinds of ``ARCHIVES``.

    Args:
        archive: The archive; a file's folders inside it do not matter.
        folder: Where the files go, under their names alone.
        files: Name to SHA-256, or None where it is not known.
        why_unfit: Says of a file without a known hash why it cannot be what its name says.

    Raises:
        StepError: no such archive, it has a path that leads outside, does not hold each file
            exactly once, or a file has another hash; a present file is kept then.
    """
    try:
        with _opened(archive) as members:
            paths = [PurePosixPath(name.replace("\\", "/")) for name, _ in members]
            for path in paths:
                if path.is_absolute() or ".." in path.parts:
                    raise StepError(f"{archive} is refused: it holds the path {str(path)!r}")
            for name, sha256 in files.items():
                found = [i for i, path in enumerate(paths) if path.name == name]
                if len(found) != 1:
                    raise StepError(f"{archive} holds {len(found)} files named {name}, expected 1")
                with atomic_path(folder / name) as temporary:
                    with members[found[0]][1]() as source, temporary.open("wb") as out:
                        shutil.copyfileobj(source, out, BLOCK)
                    digest = sha256_file(temporary)
                    if sha256 is not None and digest != sha256.lower():
                        raise StepError(
                            f"{name} of {archive} has SHA-256 {digest}, the registry "
                            f"says {sha256}: nothing was replaced"
                        )
                    if sha256 is None and (why := why_unfit(temporary, name)):
                        raise StepError(f"{archive} holds {why}: nothing was replaced")
    except BROKEN as error:
        raise StepError(f"{archive} cannot be read as an archive: {error}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[list[tuple[str, Callable[[], IO[bytes]]]]]:
    """Paths of an archive's files, each with what opens it; links and devices are no files."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as pack:
            of_zip = [member for member in pack.infolist() if not member.is_dir()]
            yield [(member.filename, partial(pack.open, member)) for member in of_zip]
        return
    with tarfile.open(archive) as ball:
        of_tar = [member for member in ball if member.isreg()]
        yield [(member.name, partial(_read, ball, member)) for member in of_tar]


def _read(ball: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = ball.extractfile(member)
    if stream is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return stream


def _fetch_all(url: str, part: Path) -> None:
    stalls, pause = 0, PAUSE
    while True:
        had = _size(part)
        try:
            return _fetch_rest(url, part)
        except (_Cut, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            stalls = 0 if _size(part) > had else stalls + 1
            if stalls == STALLS or (isinstance(error, urllib.error.URLError) and not had):
                advice = (
                    "run the same command again to go on there"
                    if _size(part)
                    else "without internet access, fetch on another machine and copy the folder"
                )
                raise StepError(
                    f"{url} cannot be fetched after {_size(part)} bytes: {reason}; {advice}"
                ) from error
            log.warning("%s: %s; going on at %d bytes", url, reason, _size(part))
            time.sleep(pause if stalls else 0.0)
            pause *= 2


def _fetch_rest(url: str, part: Path) -> None:
    """One request, appended to what is there.

    Raises:
        StepError: the server has no such file, or the disk is too small.
        _Cut, OSError, HTTPException: worth another attempt.
    """
    note = part.with_name(f"{part.name}.version")  # of the file that has arrived in part
    version = note.read_text("utf-8") if note.is_file() else ""
    have = _size(part) if version else 0
    request = urllib.request.Request(url, headers={"User-Agent": "consented-faces"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have == _range(error.headers)[1]:
            return
        if error.code == 416:
            _forget(part)
            raise _Cut("the server has another file by now") from error
        if error.code in PASSING:
            raise _Cut(f"the server answers {error.code} {error.reason}") from error
        gone = " (it is gone, or asks for a login)" if error.code in GONE else ""
        raise StepError(
            f"{url} cannot be fetched: the server answers {error.code} {error.reason}{gone}. "
            "Write another source, or a mirror, to config/models.yaml"
        ) from error
    with response:
        start, total = 0, int(response.headers.get("Content-Length") or -1)
        if response.status == 206:
            start, total = _range(response.headers)
        found = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if start and (start != have or found != version):
            _forget(part)
            raise _Cut("the server has another file by now")
        note.write_text("" if found.startswith("W/") else found, "utf-8")
        _require_space(part, total - start)
        blocks = iter(lambda: response.read(BLOCK), b"")
        with part.open("ab" if start else "wb") as out:
            for block in _shown(blocks, part.stem, total - start):
                out.write(block)
    if total >= 0 and _size(part) != total:
        raise _Cut(f"the connection ended after {_size(part)} of {total} bytes")


def _shown(blocks: Iterator[bytes], name: str, size: int) -> Iterator[bytes]:
    """Blocks, and a progress bar of their bytes."""
    total = size if size >= 0 else None
    bar: Any = progress((), description=name, total=total, unit="B", scaled=True)
    with bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def _range(headers: Message) -> tuple[int, int]:
    """First byte and whole size of a Content-Range; -1 where it does not say."""
    unit, _, rest = (headers.get("Content-Range") or "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes":
        return -1, -1
    return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else -1


def _require_space(part: Path, more: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if more > free:
        raise StepError(
            f"{part.parent} has {free / 1e9:.1f} GB free, {part.stem} needs {more / 1e9:.1f} GB "
            "more: make room, or set CONSENTED_FACES_WEIGHTS to another folder"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _forget(part: Path) -> None:
    for path in (part, part.with_name(f"{part.name}.version")):
        path.unlink(missing_ok=True)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep a second program from writing the same file.

    Raises:
        StepError: one is at it.
    """
    lock = part.with_name(f".{part.name}.lock")
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StepError(f"another program is fetching {part.stem} right now") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
