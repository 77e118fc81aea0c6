"""Shares as large as the memory allows, and training that goes on when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning, Runtime
from pipeline_steps.diffusion.training import memory
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.diffusion.training.memory import Backoff, plan_size
from pipeline_steps.runtime.errors import StepError
from tests.diffusion.toy_fleet import NAMES, a_fleet, relative

GIB = 2**30


def opener(base: BaseModel) -> Callable[[Sequence[str], Runtime], Fleet]:
    return lambda identities, runtime: a_fleet(base, identities, runtime=runtime)


def to_the_end(fleet: Fleet) -> None:
    while not fleet.finished:
        fleet.step()


class Full:
    """Makes a base model fail above a number of samples, from its n-th prediction on."""

    def __init__(self, base: BaseModel, largest: int, first: int = 0) -> None:
        self.predict = base.predict
        self.largest = largest
        self.first = first
        self.calls = 0
        self.failures = 0
        base.predict = self  # type: ignore[method-assign, assignment]

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, condition: Conditioning, network: object = None
    ) -> Tensor:
        self.calls += 1
        if len(noisy) > self.largest and self.calls > self.first:
            self.failures += 1
            raise torch.OutOfMemoryError("simulated")
        return self.predict(noisy, timesteps, condition)


@pytest.mark.parametrize("first", [0, 3])
def test_running_out_of_memory_changes_no_result(base: BaseModel, first: int) -> None:
    base.to("cpu", torch.float64)
    open_fleet = opener(base)
    expected = Backoff(open_fleet, "cpu").run(NAMES, to_the_end)
    full = Full(base, largest=4, first=first)
    backoff = Backoff(open_fleet, "cpu", Runtime(decode_chunk=4))
    steps: list[int] = []

    def train(fleet: Fleet) -> None:
        steps.append(fleet.step_number)
        to_the_end(fleet)

    result = backoff.run(NAMES, train)
    assert list(result) == list(NAMES)
    for name in NAMES:
        assert relative(result[name], expected[name]) < 1e-12
        assert result[name].losses["instance"] == pytest.approx(expected[name].losses["instance"])
    # Twice smaller pieces of the autoencoder, then two shares that go on where the first stopped.
    assert full.failures == 4
    assert steps == [0, first, first, first, first, first]
    assert backoff.runtime.decode_chunk == 1
    assert backoff.largest == 2
    assert not backoff.runtime.checkpointing
    failures = full.failures
    backoff.run(NAMES, to_the_end)
    assert full.failures == failures


def test_memory_that_ends_within_an_update_goes_back_to_the_last_sound_state(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.to("cpu", torch.float64)
    open_fleet = opener(base)
    expected = Backoff(open_fleet, "cpu").run(NAMES, to_the_end)
    update = torch.optim.AdamW.step
    updates: list[int] = []

    def failing(self: torch.optim.AdamW, closure: None = None) -> object:
        updates.append(1)
        result = update(self, closure)
        if len(updates) == 3:  # after the weights have moved
            raise torch.OutOfMemoryError("simulated")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    result = Backoff(open_fleet, "cpu").run(NAMES, to_the_end)
    for name in NAMES:
        assert relative(result[name], expected[name]) < 1e-12


def test_a_device_too_small_for_one_identity_is_named(base: BaseModel) -> None:
    full = Full(base, largest=1)
    backoff = Backoff(opener(base), "cpu")
    with pytest.raises(StepError, match="memory"):
        backoff.run(NAMES, to_the_end)
    assert backoff.largest == 1
    assert backoff.runtime.checkpointing
    assert full.failures == 6  # graphs, pieces, three to two, two to one, recomputing, no more


@pytest.mark.parametrize(("room", "expected"), [(20 * GIB, 3), (8 * GIB, 2), (4 * GIB, 1)])
def test_a_fleet_is_as_large_as_the_memory_allows(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, room: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "budget", lambda device: room)
    # A straight line through two peaks: 1 GiB, and 3 for each identity.
    monkeypatch.setattr(memory, "_peak", lambda fleet, names, *rest: (1 + 3 * len(names)) * GIB)
    assert plan_size(NAMES, opener(base), device="cuda") == expected
    assert plan_size(NAMES, opener(base), device="cuda", at_once=2) == 2
    assert plan_size(NAMES, opener(base), device="cpu") == len(NAMES)


def test_two_identities_that_do_not_fit_are_trained_one_by_one(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(open_fleet: object, names: Sequence[str], *rest: object) -> int:
        if len(names) > 1:
            raise torch.OutOfMemoryError("simulated")
        return GIB

    monkeypatch.setattr(memory, "_peak", peak)
    assert plan_size(NAMES, opener(base), device="cuda") == 1


def test_shares_are_of_even_sizes() -> None:
    names = [f"ID_{i}" for i in range(9)]
    state = {"step": torch.arange(9)}
    parts = memory._parts(names, state, 8)
    assert sorted(len(part) for part, _ in parts) == [4, 5]
    assert [name for part, _ in parts for name in part] == names
    rows = [own["step"] for _, own in parts if own is not None]
    assert torch.equal(torch.cat(rows), state["step"])
    assert memory._parts(names[:8], None, 8) == [(names[:8], None)]
