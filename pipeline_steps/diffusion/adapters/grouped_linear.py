"""A frozen linear map with one low-rank update per group of the batch: W x + s B_k A_k x.

On a GPU, automatic differentiation does it. In single precision on a CPU, forward and backward are
written out here, with the same products in the orders that are fast there: low-rank factors are
kept as rows (a thin matrix as the left factor is up to five times faster than as the right one),
sums go into the frozen product in place, and the frozen products are oneDNN's, which uses a
processor's widest registers where MKL does so on one vendor's only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """Apply it.

    Args:
        x: [g * b, ..., in], the b samples of one group side by side.
        weight: Frozen [out, in].
        bias: Frozen [out], or None.
        down: A of each group, [g, r, in].
        up: B of each group, [g, out, r].
        scale: s.

    Returns:
        [g * b, ..., out], in the type of ``x`` (under autocast, the type of its products).
    """
    if _on_cpu_in_full_precision(x, weight):
        result: Tensor = _WrittenOut.apply(x, weight, bias, down, up, scale)
        return result
    frozen = F.linear(x, weight, bias)
    grouped = x.reshape(len(down), -1, x.shape[-1])
    total = torch.baddbmm(
        frozen.reshape(len(down), -1, frozen.shape[-1]),
        torch.bmm(grouped, down.mT.to(x.dtype)),
        up.mT.to(x.dtype),
        alpha=scale,
    )
    return total.reshape(frozen.shape)


def _on_cpu_in_full_precision(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _WrittenOut(torch.autograd.Function):
    """The same with its derivatives; needs no gradient of the frozen weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        x = x.contiguous()
        down, up = down.to(x.dtype), up.to(x.dtype)
        grouped = x.view(len(down), -1, x.shape[-1])
        low = torch.bmm(down, grouped.mT)  # [g, r, n]
        result = frozen_linear(x, weight, bias)
        result.view(len(up), -1, up.shape[1]).baddbmm_(low.mT, up.mT, alpha=scale)
        ctx.save_for_backward(x, low, weight, down, up)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, down, up = ctx.saved_tensors
        gradient = gradient.contiguous()
        grouped = gradient.view(len(up), -1, up.shape[1])
        back = torch.bmm(up.mT, grouped.mT).mul_(ctx.scale)  # [g, r, n]
        by_down = torch.bmm(back, x.view(len(down), -1, x.shape[-1]))
        by_up = torch.bmm(low, grouped).mul_(ctx.scale).mT
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = frozen_linear(gradient, weight.mT, None)
            by_x.view(len(down), -1, x.shape[-1]).baddbmm_(back.mT, down)
        return by_x, None, None, by_down, by_up, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` by oneDNN where it is there (single precision on a CPU); no gradients."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)
