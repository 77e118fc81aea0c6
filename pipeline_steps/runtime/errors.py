"""The one error a step shows to its user, and what is wrong around a program, in words."""

from __future__ import annotations

import errno
import os

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
