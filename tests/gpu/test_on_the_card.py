"""A real card computes the CPU's numbers, and a training step never waits for the host."""

from __future__ import annotations

import pytest

from benchmarks.device_checks import CHECKS
from benchmarks.on_gpu import never_waits


@pytest.mark.parametrize("name", CHECKS)
def test_the_card_computes_the_cpus_numbers(name: str) -> None:
    assert CHECKS[name].distance("cuda") <= CHECKS[name].tolerance


def test_a_dreambooth_step_never_waits_for_the_host() -> None:
    assert never_waits()
