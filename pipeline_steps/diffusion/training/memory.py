"""Peak and free memory of a GPU, or of this process on a CPU (Linux)."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")  # proc(5): writing 5 resets the peak
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def reset_peak(device: torch.device | str) -> None:
    """Forget the peak so far."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        RESET_PEAK.write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak of the whole run is a safe stand-in
        return


def peak(device: torch.device | str) -> int | None:
    """Most bytes held since :func:`reset_peak`; None where the system does not say."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _kilobytes(STATUS, "VmHWM")


def budget(device: torch.device | str) -> int | None:
    """Bytes that this process may come to hold, what it holds now included; None: unknown."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    held, free_now = _kilobytes(STATUS, "VmRSS"), _kilobytes(MEMINFO, "MemAvailable")
    if held is None or free_now is None:
        return None
    return held + min([free_now, *_cgroup_rest()])


def release(device: torch.device | str) -> None:
    """Give back what failed or finished steps have left in caches."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _cgroup_rest() -> list[int]:
    """What the limit of this process's control group leaves; empty without such a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (CGROUP / "memory.current").read_text(encoding="ascii").strip()
        return [max(0, int(limit) - int(used))]
    except (OSError, ValueError):  # "max" is no number
        return []


def _kilobytes(file: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
