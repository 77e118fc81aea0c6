"""One run of a study at a time, and no lock that outlives the process that took it.

Snakemake notes the files it works on in ``.snakemake/locks``, and the notes of a run that was
killed stay there until somebody removes them. Here a run holds a ``flock`` as long as it lives;
the kernel (or the file server) lets go of it however the run ends. Whoever holds it knows that
notes which name the study's results are left over, and removes them; so are those of any other
study of the folder of which neither a Snakemake, planning or running, nor a step lives.

The steps of a run hold a second lock, shared among them. Snakemake may be killed alone; its steps
then work on, and the next run waits for them instead of working on the same files.

Where a file system knows no ``flock``, nothing is held and Snakemake's own notes stand.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from pipeline_steps.runtime.errors import Interrupted, StepError

VARIABLE = "CONSENTED_FACES_RUN"  # "<token>:<path of the run's lock>", of the run that a step is in
FOLDER = Path(".snakemake")
CLAIM_SECONDS = 10.0
POLL_SECONDS = 0.5
LEFT_HALF = re.compile(r"\.[^/]*\.[0-9a-f]{8}(\.[^./]+)?")  # names that atomic_path makes
_held: list[TextIOWrapper] = []  # open as long as the process lives


def clear_stale_locks(results: str, folder: Path = FOLDER) -> bool:
    """Remove Snakemake's lock files of runs that no longer live, and be known as planning.

    Args:
        results: Folder of the study's results; files of its runs' locks name it.
        folder: Snakemake's own folder.

    Returns:
        Whether it is certain that nobody else runs this study just now.
    """
    own = _path(results, folder)
    alive = {path.stem for path in own.parent.iterdir() if path.stem != own.stem and _lives(path)}
    planning = _open(own.with_suffix(".planning"))
    with suppress(OSError):  # no locks on this file system
        fcntl.flock(planning, fcntl.LOCK_SH)
    _held.append(planning)
    with _open(own) as stream:
        if not _locked(stream):
            return False
        for path in (folder / "locks").glob("*.lock"):
            try:
                names = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:  # of another study's run, which ended
                continue
            of_studies = [name for name in names if name.startswith(f"{Path(results).parent}/")]
            studies = {"_".join(name.split("/")[:2]) for name in of_studies} or alive
            # A file cut by a kill may name nothing, and then locks nothing; one that names no
            # study may be anybody's.
            if names and (own.stem in studies or not studies & alive):
                path.unlink(missing_ok=True)
        return True


def claim_run(
    results: str,
    folder: Path = FOLDER,
    *,
    tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> None:
    """Hold the study's lock until this process ends, then wait for steps of an earlier run.

    Steps that this process starts find the lock through an environment variable. What a killed run
    left half-written is removed.

    Raises:
        StepError: another run of the study lives.
    """
    path = _path(results, folder)
    stream = _open(path)
    limit = time.monotonic() + CLAIM_SECONDS  # another one may be looking for stale locks
    while not (locked := _locked(stream)):
        if locked is None:
            stream.close()
            return
        if time.monotonic() > limit:
            stream.seek(0)
            who = stream.read().partition(" ")[2] or "unknown"
            stream.close()
            raise StepError(
                f"{results} is being made by another Snakemake ({who}): wait until it ends, or end "
                "it"
            )
        time.sleep(POLL_SECONDS)
    _held.append(stream)
    stream.seek(0)
    crashed = bool(stream.read())
    token = secrets.token_hex(8)
    stream.seek(0)
    stream.truncate()
    stream.write(f"{token} process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    os.environ[VARIABLE] = f"{token}:{path.resolve()}"
    with _open(_steps(path)) as steps:
        if _locked(steps) is False:
            found = ", ".join(_holders(_steps(path))) or "see squeue --me"
            tell(
                f"Waiting for steps of an earlier run that still work on {results}, though their "
                f"Snakemake is gone: {found}. They save what they have when you end them (kill, "
                "scancel)."
            )
        while _locked(steps) is False:
            time.sleep(POLL_SECONDS)
    if crashed:
        _remove_half_written(Path(results))


def release_run() -> None:
    """Say that the run came to its end, so that the next one need not look for leftovers."""
    while _held:
        stream = _held.pop()
        stream.seek(0)
        stream.truncate()
        stream.close()


def join_run() -> None:
    """In a step: be known to the run as alive, until this process ends.

    Raises:
        Interrupted: the run that started this step is gone, and a newer one works in its place.
    """
    token, _, name = os.environ.get(VARIABLE, "").partition(":")
    path = Path(name)
    if not name or not path.is_file():
        return
    steps = _open(_steps(path))
    try:
        fcntl.flock(steps, fcntl.LOCK_SH)
    except OSError:  # no locks on this file system
        steps.close()
        return
    _held.append(steps)
    # Only now: a newer run writes its token before it looks for steps.
    if not path.read_text(encoding="utf-8").startswith(token):
        raise Interrupted("this step's run is gone and a newer one has taken its place")


def _path(results: str, folder: Path) -> Path:
    path = folder / "runs" / f"{results.replace('/', '_')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _steps(path: Path) -> Path:
    return path.with_suffix(".steps")


def _open(path: Path) -> TextIOWrapper:
    return path.open("a+", encoding="utf-8")


def _lives(path: Path) -> bool:
    """Whether somebody holds a lock, as far as can be told."""
    with _open(path) as stream:
        return _locked(stream) is not True


def _locked(stream: TextIOWrapper) -> bool | None:
    """Take an exclusive lock: whether it is ours now; None where the file system knows none."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holders(path: Path) -> list[str]:
    """Processes of this machine that have a file open, other than this one."""
    found = []
    wanted = os.stat(path)
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = entry.stat()
        except OSError:  # gone, or somebody else's
            continue
        process = entry.parts[2]
        if os.path.samestat(status, wanted) and process != str(os.getpid()):
            found.append(f"process {process}")
    return sorted(set(found))


def _remove_half_written(results: Path) -> None:
    for parent, folders, files in os.walk(results):
        for name in [*folders, *files]:
            if LEFT_HALF.fullmatch(name):
                path = Path(parent, name)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
