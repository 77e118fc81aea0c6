"""A network folded for the CPU computes what the network itself does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.diffusion.cpu import (
    FrozenGeglu,
    FrozenLinear,
    can_fold,
    folded,
)
from pipeline_steps.diffusion.lora import AdapterBank

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")


def predict(base: BaseModel, condition: Conditioning) -> torch.Tensor:
    noisy = torch.randn(4, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return base.predict(noisy, torch.full((4,), 400), condition).clone()


def test_layers_equal_their_models() -> None:
    torch.manual_seed(0)
    x, linear = torch.randn(3, 5, 8), nn.Linear(8, 12)
    with torch.no_grad():
        frozen = FrozenLinear(linear.weight, linear.bias)
        torch.testing.assert_close(frozen(x), linear(x))
        torch.testing.assert_close(frozen(x[:1]), linear(x[:1]))
        value, gate = linear(x).chunk(2, dim=-1)
        geglu = FrozenGeglu(linear.weight, linear.bias)
        torch.testing.assert_close(geglu(x), value * nn.functional.gelu(gate))


def test_a_constant_input_is_multiplied_once_and_another_one_anew() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 4)
    a, b = torch.randn(2, 8), torch.randn(2, 8)
    with torch.no_grad():
        layer = FrozenLinear(linear.weight, None, constant_input=True)
        assert layer(a) is layer(a)
        torch.testing.assert_close(layer(b), nn.functional.linear(b, linear.weight))
        a.add_(1.0)
        torch.testing.assert_close(layer(a), nn.functional.linear(a, linear.weight))


def test_a_folded_network_predicts_the_same_and_comes_back_as_it_was(base: BaseModel) -> None:
    assert can_fold(base.unet)
    first = base.encode_prompts(["photo of sks person"] * 4)
    second = base.encode_prompts(["photo of a busy beach"] * 4)
    untuned = predict(base, first)
    with folded(base.unet, None):
        torch.testing.assert_close(predict(base, first), untuned, rtol=0.0, atol=1e-5)
    bank = AdapterBank(base.unet, count=3, rank=2, alpha=6.0, targets=TARGETS)
    with torch.no_grad():
        bank.weights.normal_(std=0.15, generator=torch.Generator().manual_seed(4))
    before = dict(base.unet.named_modules())
    for row in (2, 0):
        bank.activate([row])
        expected = [predict(base, condition) for condition in (first, second)]
        with folded(base.unet, row):
            got = [predict(base, condition) for condition in (first, second, first)]
        for value, wanted in zip(got, [*expected, expected[0]], strict=True):
            torch.testing.assert_close(value, wanted, rtol=0.0, atol=2e-5)
        assert (got[0] - untuned).abs().max() > 0.01
    after = dict(base.unet.named_modules())
    assert set(after) == set(before) and all(after[name] is before[name] for name in before)


def test_a_bank_needs_a_row_and_a_failure_leaves_no_layer_behind(base: BaseModel) -> None:
    bank = AdapterBank(base.unet, count=1, rank=2, alpha=2.0, targets=("to_q",))
    before = dict(base.unet.named_modules())
    with pytest.raises(ValueError, match="which of its rows"), folded(base.unet, None):
        pass
    assert all(before[name] is layer for name, layer in base.unet.named_modules())
    assert len(bank) == 1


def test_other_types_are_left_to_pytorch() -> None:
    assert not can_fold(nn.Linear(1, 1, dtype=torch.float64))
    assert not can_fold(nn.Linear(1, 1, dtype=torch.bfloat16))
    assert not can_fold(nn.Linear(1, 1, device="meta"))
