"""The one error a step shows to its user, and the entry point that prints it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

# The disk, not the program, is at fault.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "the file would be larger than the system's limit (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the network file system lost the file",
}


class StepError(Exception):
    """A step cannot go on; the message says what is wrong, where, and what to do about it."""


class Interrupted(Exception):
    """A step was asked to stop and saved what it had; run again, it goes on from there."""


def run_main(main: Callable[[], int]) -> int:
    """Run a step's ``main``; turn a :class:`StepError` into one line and exit status 2.

    A full disk, too little memory and a failing GPU become such a line, too: :func:`outer_cause`.
    :class:`Interrupted` becomes one line and status 75 (EX_TEMPFAIL of sysexits.h: try again). Any
    other exception keeps its traceback: it is a defect, not a user's mistake.
    """
    from pipeline_steps.runtime.machine import tell_machine
    from pipeline_steps.runtime.run_lock import join_run  # which knows these errors

    try:
        join_run()
        tell_machine()
        return main()
    except StepError as error:
        _say("error", str(error))
        return 2
    except Interrupted as interruption:
        _say("stopped", str(interruption))
        return os.EX_TEMPFAIL
    except Exception as error:
        cause = outer_cause(error)
        if cause is None:
            raise
        _say("error", cause)
        return 2


def write_error(error: OSError, path: str | os.PathLike[str]) -> StepError | None:
    """A sentence for a file that could not be written; None where the disk is not at fault."""
    reason = DISK_ERRORS.get(error.errno or 0)
    if reason is None:
        return None
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EFBIG: "raise the limit",
    }.get(error.errno or 0, "repair that")
    return StepError(
        f"{os.fspath(path)} cannot be written, {reason}: {remedy} and run again; what is finished "
        "is kept"
    )


def outer_cause(error: Exception) -> str | None:
    """What is wrong around the program, with a remedy; None for anything else.

    Args:
        error: Any exception. PyTorch's are told by name and text: it may not be loaded.
    """
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError):
        sentence = write_error(error, error.filename or "the log or another file")
        return None if sentence is None else str(sentence)
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or "CUDA out of memory" in text:
        return (
            f"the GPU's memory is not enough ({text}): use a larger card, make sure that nobody "
            "else uses this one (nvidia-smi), or work on less at once (--at-once, --batch-size)"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            f"the machine's memory is not enough ({text or 'MemoryError'}): raise the job's mem_mb "
            "(set-resources in the profile), or run fewer jobs at once (--cores)"
        )
    if isinstance(error, RuntimeError) and any(
        sign in f"{kind} {text}" for sign in ("AcceleratorError", "CUDA error", "CUDNN", "NVML")
    ):
        return (
            f"the GPU failed ({text}): see what nvidia-smi says, and run again; another card is "
            "chosen by CUDA_VISIBLE_DEVICES, and --resources gpu=0 computes without"
        )
    return None


def _say(kind: str, text: str) -> None:
    with contextlib.suppress(OSError):  # the log may lie on a disk that is full
        print(f"{kind}: {' '.join(text.split())}", file=sys.stderr, flush=True)
