"""The C library's memory allocator, told to keep what it has.

By default glibc returns large freed blocks to the kernel at once. Networks free and allocate the
same few megabytes at every layer, and each time the kernel clears the pages anew: measured 10 to
20 % of a small UNet's time on a CPU.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3), from glibc's malloc.h.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
LIMIT = 2**30  # bytes; larger blocks are few, and those are given back
OLD_LIMIT = 2**25  # the most that glibc before 2.35 takes
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process hold on to freed memory up to a gigabyte, where it runs on glibc.

    What the user chose by glibc's own variables, or another allocator, stays.

    Returns:
        Whether the allocator took it.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = bool(mallopt(MMAP_THRESHOLD, LIMIT)) or bool(mallopt(MMAP_THRESHOLD, OLD_LIMIT))
    return kept and bool(mallopt(TRIM_THRESHOLD, LIMIT))
