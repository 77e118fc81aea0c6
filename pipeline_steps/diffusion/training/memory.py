"""How many identities are trained together, and what happens when the memory does not suffice.

On a GPU the number comes from a short probe: the peak memory with one and with two identities gives
a fixed part and a part per identity. When the device runs out of memory all the same, the
autoencoder's graphs are held piece by piece, the pieces are halved, then the fleet, and at last
activations are recomputed; training goes on from the state it had. None of this changes a result
beyond float error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline_steps.diffusion.base_models.base import Runtime
from pipeline_steps.diffusion.training.fleet import FineTuned, Fleet, State, take_rows
from pipeline_steps.io.tensors import release
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger

MOST = {"cpu": 8, "cuda": 64}  # beyond, an identity-step gets no faster
MEMORY_SHARE = 0.9  # of the free memory; the rest is for fragmentation

OpenFleet = Callable[[Sequence[str], Runtime], Fleet]


def plan_size(
    identities: Sequence[str],
    open_fleet: OpenFleet,
    *,
    device: torch.device | str,
    at_once: int | None = None,
) -> int:
    """How many identities to train together.

    Args:
        identities: Those to be trained.
        open_fleet: Opens a fleet of some of them.
        device: Where they will be trained.
        at_once: What the user wants; None: as many as pay and fit.

    Returns:
        At least 1 and at most their number.
    """
    kind = torch.device(device).type
    most = max(1, min(len(identities), at_once or MOST.get(kind, MOST["cpu"])))
    if at_once is not None or most < 2 or kind != "cuda":
        return most
    try:
        one, two = (_peak(open_fleet, identities[:count], device) for count in (1, 2))
    except torch.OutOfMemoryError:
        return 1
    finally:
        release(device)
    room, each = budget(device), max(1, two - one)
    fixed = max(0, one - each)
    chosen = max(1, min(most, (int(MEMORY_SHARE * room) - fixed) // each))
    get_logger("finetune").info(
        f"memory: {fixed / 2**30:.1f} GiB, {each / 2**30:.2f} GiB per identity, of "
        f"{room / 2**30:.1f} GiB: {chosen} identities at once"
    )
    return chosen


def _peak(open_fleet: OpenFleet, identities: Sequence[str], device: torch.device | str) -> int:
    """Bytes at the peak of two steps of a fleet, what was held before included."""
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    # Compiled steps take no more memory at their peak, and the probe should be short.
    with open_fleet(identities, Runtime(compile="off")) as fleet:
        for _ in range(min(2, fleet.settings.steps)):
            fleet.step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


class Backoff:
    """Trains fleets, and makes do with less memory when it runs out.

    What one fleet has learned about the memory holds for the next ones.

    Args:
        open_fleet: Opens a fleet of some identities.
        device: Where they are trained.
        runtime: How fleets run at first.

    Attributes:
        runtime: How fleets run now.
        largest: Identities that fit, as far as is known.
    """

    def __init__(
        self, open_fleet: OpenFleet, device: torch.device | str, runtime: Runtime | None = None
    ) -> None:
        self.open_fleet = open_fleet
        self.device = device
        self.runtime = runtime or Runtime()
        self.largest = sys.maxsize

    def run(
        self,
        identities: Sequence[str],
        train: Callable[[Fleet], None],
        state: State | None = None,
    ) -> dict[str, FineTuned]:
        """Train some identities, in one fleet if the memory allows.

        Args:
            identities: Who is trained.
            train: Steps a fleet until it is finished; may be called again with fleets of parts of
                the fleet, which go on where the last one ran out of memory.
            state: Of these identities, in this order, to go on from.

        Returns:
            Identity to its result, in the order of ``identities``.

        Raises:
            StepError: not even one identity fits into the memory.
        """
        results: dict[str, FineTuned] = {}
        waiting = [(list(identities), state)]
        while waiting:
            members, state = waiting.pop(0)
            if len(members) > self.largest:
                waiting[:0] = _parts(members, state, self.largest)
                continue
            done, state = self._attempt(members, state, train)
            if done is None:
                self._back_off(len(members))
                waiting.insert(0, (members, state))
            else:
                results |= done
        return {identity: results[identity] for identity in identities}

    def _attempt(
        self, members: list[str], state: State | None, train: Callable[[Fleet], None]
    ) -> tuple[dict[str, FineTuned] | None, State | None]:
        """Results, or None and the state to go on from where the memory did not suffice."""
        try:
            with self.open_fleet(members, self.runtime) as fleet:
                try:
                    if state is not None:
                        fleet.load_state(state)
                    train(fleet)
                    return fleet.results(), None
                except torch.OutOfMemoryError:
                    # A step that fails before its update has changed nothing.
                    return None, fleet.state() if fleet.sound else state
        except torch.OutOfMemoryError:  # there was no room to open it
            return None, state

    def _back_off(self, count: int) -> None:
        release(self.device)
        log, chunk = get_logger("finetune"), self.runtime.chunk_on(self.device)
        if not self.runtime.redecode:
            self.runtime = replace(self.runtime, redecode=True)
            log.warning("out of memory: holding the graph of %d decoded images at a time", chunk)
        elif chunk > 1:
            self.runtime = replace(self.runtime, decode_chunk=chunk // 2)
            log.warning("out of memory: decoding %d images at a time", chunk // 2)
        elif count > 1:
            self.largest = -(-count // 2)
            log.warning("out of memory: %d identities at once", self.largest)
        elif not self.runtime.checkpointing:
            self.runtime = replace(self.runtime, checkpointing=True)
            log.warning("out of memory: recomputing activations")
        else:
            raise StepError(
                "one identity does not fit into the device's memory, even with recomputed "
                "activations: take a larger device, finetune.precision bf16, or a smaller "
                "finetune.batch_size"
            )


def _parts(
    members: Sequence[str], state: State | None, most: int
) -> list[tuple[list[str], State | None]]:
    """Parts of at most ``most`` members, as few as can be, with their rows of the state."""
    pieces = np.array_split(np.arange(len(members)), -(-len(members) // most))
    return [
        ([members[k] for k in rows], None if state is None else take_rows(state, rows.tolist()))
        for rows in pieces
    ]


def budget(device: torch.device | str) -> int:
    """Bytes of a GPU that this process may come to hold, what it holds now included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)
