"""8-bit AdamW against AdamW in single precision, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline_steps.diffusion.training.optimisers import (
    BLOCK,
    AdamW,
    AdamW8bit,
    RowOptimiser,
    dequantise,
    dynamic_map,
    open_optimiser,
    quantise,
)
from pipeline_steps.study.settings.diffusion import FinetuneSettings

SETTINGS = FinetuneSettings(learning_rate=1e-2, optimiser="adamw8bit")


def start(rows: int = 3, columns: int = 700) -> nn.Parameter:
    generator = torch.Generator().manual_seed(1)
    return nn.Parameter(torch.randn(rows, columns, generator=generator))


def descend(optimiser: RowOptimiser, weights: nn.Parameter, steps: int, first: int = 0) -> None:
    """Noisy steps towards a target, other noise in each row and step."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        noise = 0.3 * torch.randn(8, weights.shape[1], generator=generator)[: len(weights)]
        target = torch.linspace(-1, 1, weights.shape[1])
        weights.grad = weights.detach() - target + noise
        optimiser.update(1e-2)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_codes_are_the_published_ones() -> None:
    """Dettmers et al.: seven decades, zero and one; signed codes but for the lone one."""
    unsigned, signed = dynamic_map(signed=False), dynamic_map(signed=True)
    for codes in (unsigned, signed):
        assert len(codes) == 256
        assert (codes.diff() > 0).all()
        assert codes[-1] == 1
        assert (codes == 0).any()
    assert unsigned[1] == pytest.approx(10**-6 * (0.1 + 0.55) / 2)
    # The signed codes but the one are symmetric.
    torch.testing.assert_close(signed[:-1].flip(0), -signed[:-1])


def test_values_come_back_with_a_few_percent_of_error_over_many_decades() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(4, 1000, generator=generator) * 10 ** (
        -3 * torch.rand(4, 1000, generator=generator)
    )
    for signed in (True, False):
        codes = dynamic_map(signed=signed)
        these = values if signed else values.abs()
        back = dequantise(*quantise(these, codes), codes, 1000)
        assert relative(back, these) < 0.02
        assert quantise(these, codes)[0].dtype == torch.uint8
        assert quantise(these, codes)[1].shape == (4, -(-1000 // BLOCK))
    codes = dynamic_map(signed=True)
    assert dequantise(*quantise(torch.zeros(1, 300), codes), codes, 300).abs().max() == 0


def test_it_follows_adamw_in_full_precision() -> None:
    full, narrow = start(), start()
    descend(AdamW(full, SETTINGS), full, 60)
    descend(AdamW8bit(narrow, SETTINGS), narrow, 60)
    moved = relative(start().detach(), full.detach())
    assert moved > 0.3
    assert relative(narrow.detach(), full.detach()) < 0.03 * moved


def test_a_row_moves_as_if_it_were_alone_and_its_moments_can_be_taken_along() -> None:
    together = start()
    optimiser = open_optimiser(together, SETTINGS)
    assert isinstance(optimiser, AdamW8bit)
    descend(optimiser, together, 5)
    held = {name: value.clone() for name, value in optimiser.moments().items()}
    assert held["exp_avg"].dtype == torch.uint8
    assert all(len(value) == 3 for value in held.values())
    at_five = together.detach().clone()
    descend(optimiser, together, 5, first=5)

    alone = nn.Parameter(at_five[:1].clone())
    resumed = AdamW8bit(alone, SETTINGS)
    resumed.load({name: value[:1] for name, value in held.items()}, 5)
    descend(resumed, alone, 5, first=5)
    assert torch.equal(alone[0], together[0])


def test_an_update_without_gradients_is_an_error() -> None:
    with pytest.raises(ValueError, match="gradient"):
        AdamW8bit(start(), SETTINGS).update(1e-3)
