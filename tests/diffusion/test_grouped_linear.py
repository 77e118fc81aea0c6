"""The hand-written low-rank layer against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.cpu import frozen_linear
from pipeline_steps.diffusion.lora import grouped_linear


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    """One group after the other."""
    groups = x.chunk(len(down))
    results = [
        torch.nn.functional.linear(part, weight + 0.7 * up[k] @ down[k], bias)
        for k, part in enumerate(groups)
    ]
    return torch.cat(results)


@pytest.mark.parametrize("shape", [(6, 5, 12), (3, 12), (6, 2, 4, 12)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients(
    shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype, limit: float
) -> None:
    generator = torch.Generator().manual_seed(4)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    x, down, up = random(*shape), random(3, 2, 12), random(3, 7, 2)
    leaves = [value.requires_grad_() for value in (x, down, up)]
    weight, bias = random(7, 12), random(7) if with_bias else None
    result = grouped_linear(x, weight, bias, down, up, 0.7)
    expected = plain(x, weight, bias, down, up)
    towards = random(*expected.shape)
    ours = torch.autograd.grad(result, leaves, towards)
    wanted = torch.autograd.grad(expected, leaves, towards)
    for value, reference in zip((result, *ours), (expected, *wanted), strict=True):
        assert value.shape == reference.shape
        assert float((value - reference).norm() / reference.norm()) < limit


def test_layouts_do_not_matter() -> None:
    x = torch.randn(4, 12, 5).mT
    weight, down, up = torch.randn(7, 12), torch.randn(2, 3, 12), torch.randn(2, 7, 3)
    torch.testing.assert_close(
        grouped_linear(x, weight, None, down, up, 0.7), plain(x, weight, None, down, up)
    )


def test_a_frozen_product_is_torchs() -> None:
    x, weight, bias = torch.randn(2, 5, 12), torch.randn(7, 12), torch.randn(7)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(frozen_linear(x, weight, bias), expected)
    transposed = torch.randn(12, 7)
    torch.testing.assert_close(frozen_linear(x, transposed.mT, None), x @ transposed)
