"""What a job computes on: free GPUs of its machine, taken before torch is imported, or the CPU.

A workflow manager on one machine counts GPUs but does not say which one a job got, so that every
job would use the first. Here a job holds an exclusive ``flock`` on one file per card; the kernel
lets go of it however the job ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import COMPUTES_ON, get_logger

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE_VARIABLE = "CONSENTED_FACES_DEVICE"  # "cpu": compute there, though a card is held
FOLDER_VARIABLE = "CONSENTED_FACES_GPU_LEASES"  # node-local folder of the lock files
SLOTS_VARIABLE = "CONSENTED_FACES_GPU_SLOTS"  # jobs that may share one card, default 1
RETRY_SECONDS = 1.0

# Parameters of mallopt(3), from glibc's malloc.h.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
LIMIT = 2**30  # bytes; larger blocks are few, and those are given back
OLD_LIMIT = 2**25  # the most that glibc before 2.35 takes
GLIBC_VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


@contextmanager
def gpu_lease(wanted: int = 1) -> Iterator[str]:
    """Hold ``wanted`` GPUs for the length of the block, see :func:`hold_gpus`.

    Yields:
        "cuda", with ``CUDA_VISIBLE_DEVICES`` set to the held cards and float32 being float32 in
        convolutions too, or "cpu" where there is none or where
        ``CONSENTED_FACES_DEVICE`` says so.

    Raises:
        StepError: CUDA was initialised before, or PyTorch cannot use the card.
    """
    with hold_gpus(wanted) as cards:
        if cards:
            get_logger("lease").info("GPU %s", ",".join(cards))
        if not cards or os.environ.get(DEVICE_VARIABLE) == "cpu":
            keep_freed_memory()
            yield "cpu"
            return
        import torch  # only now: it sees the held cards alone

        if not torch.cuda.is_available():
            raise StepError(
                f"PyTorch cannot use GPU {','.join(cards)}, which this job was given: see what "
                "nvidia-smi says about card and driver, or compute without GPUs (--resources "
                f"gpu=0, or {DEVICE_VARIABLE}=cpu in the environment)"
            )
        # By default convolutions round float32 to 11 bits: what is measured would depend on whether
        # there is a GPU, and on its generation.
        torch.backends.cudnn.allow_tf32 = False
        get_logger("lease").info("%s %s", COMPUTES_ON, torch.cuda.get_device_name())
        yield "cuda"


@contextmanager
def hold_gpus(wanted: int = 1) -> Iterator[list[str]]:
    """Hold cards for the length of the block, waiting until they are free.

    Candidates are the cards of ``CUDA_VISIBLE_DEVICES``, or all that ``nvidia-smi -L`` lists.
    Where a cluster's scheduler already gave this job its cards there are no more candidates than
    wanted, and they are taken without a lock.

    Args:
        wanted: Number of cards. 0 hides all cards.

    Yields:
        Indices or UUIDs of the held cards, to which ``CUDA_VISIBLE_DEVICES`` is set; empty on a
        machine without.

    Raises:
        StepError: CUDA was initialised before; the choice of a card would have no effect.
    """
    candidates = candidate_gpus() if wanted > 0 else []
    if not candidates:
        with _visible([]):
            yield []
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise StepError("a GPU has to be chosen before CUDA is initialised: import torch later")
    with ExitStack() as stack:
        scarce = len(candidates) > wanted
        held = _wait_for(candidates, wanted, stack) if scarce else candidates
        stack.enter_context(_visible(held))
        yield held


def candidate_gpus() -> list[str]:
    """Indices or UUIDs of the GPUs this process may use; empty on a machine without."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # As CUDA reads it: the list ends at the first entry that names no device.
        end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return parse_listing(listed.stdout) if listed.returncode == 0 else []


def parse_listing(listing: str) -> list[str]:
    """UUIDs in the output of ``nvidia-smi -L``; a partitioned card counts by its MIG devices."""
    cards: list[tuple[str, list[str]]] = []
    for line in listing.splitlines():
        uuid = line.rpartition("UUID: ")[2].rstrip(") ")
        if line.startswith("GPU "):
            cards.append((uuid, []))
        elif line.strip().startswith("MIG ") and cards:
            cards[-1][1].append(uuid)
    return [device for card, parts in cards for device in (parts or [card])]


def _wait_for(candidates: Sequence[str], wanted: int, stack: ExitStack) -> list[str]:
    """Lock files of ``wanted`` cards, entered into ``stack``; all or none, so nobody deadlocks."""
    folder = Path(
        os.environ.get(FOLDER_VARIABLE)
        or Path(tempfile.gettempdir()) / f"consented-faces-gpus-{os.getuid()}"
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    slots = max(1, int(os.environ.get(SLOTS_VARIABLE) or 1))
    log = get_logger("lease")
    waiting = False
    while True:
        with ExitStack() as attempt:
            held: list[str] = []
            # Emptiest first: every card's first slot before any card's second.
            for slot in range(slots):
                for card in random.sample(candidates, len(candidates)):
                    if card in held or len(held) == wanted:
                        continue
                    if _lock(folder / f"{card.replace('/', '_')}.{slot}.lock", attempt):
                        held.append(card)
            if len(held) == wanted:
                stack.push(attempt.pop_all())
                return sorted(held, key=candidates.index)
        if not waiting:
            log.info("waiting for %d of %d GPUs", wanted, len(candidates))
            waiting = True
        time.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))


def _lock(path: Path, stack: ExitStack) -> bool:
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return False
    stack.callback(stream.close)
    return True


@contextmanager
def _visible(cards: Sequence[str]) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(cards)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def keep_freed_memory() -> bool:
    """Let this process hold on to freed memory up to a gigabyte, where it runs on glibc.

    By default glibc returns large freed blocks to the kernel at once. Networks free and allocate
    the same few megabytes at every layer, and each time the kernel clears the pages anew: measured
    10 to 20 % of a small UNet's time on a CPU.

    What the user chose by glibc's own variables, or another allocator, stays.

    Returns:
        Whether the allocator took it.
    """
    if any(os.environ.get(name) for name in GLIBC_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = bool(mallopt(MMAP_THRESHOLD, LIMIT)) or bool(mallopt(MMAP_THRESHOLD, OLD_LIMIT))
    return kept and bool(mallopt(TRIM_THRESHOLD, LIMIT))
