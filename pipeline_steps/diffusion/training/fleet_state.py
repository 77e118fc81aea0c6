"""States of fleets: row k of every tensor is identity k, so that cohorts can be taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]  # see Fleet.state


def take_rows(state: State, rows: Sequence[int]) -> dict[str, Tensor]:
    """The state of some of a fleet's identities, in the order of ``rows``."""
    index = torch.tensor(list(rows), dtype=torch.int64)
    return {name: value[index] for name, value in state.items()}


def join_rows(states: Sequence[State]) -> dict[str, Tensor]:
    """One state of the identities of several states, in their order.

    Raises:
        ValueError: the states are of different steps, or of networks of other sizes.
    """
    steps = sorted({int(step) for state in states for step in state["step"]})
    if len(steps) != 1:
        raise ValueError(f"states of one step can be joined, these are of {steps}")
    names = set(states[0])
    if any(set(state) != names for state in states):
        raise ValueError("states with other contents cannot be joined")
    try:
        return {name: torch.cat([state[name] for state in states]) for name in sorted(names)}
    except RuntimeError as error:
        raise ValueError(f"states of other sizes cannot be joined: {error}") from error
