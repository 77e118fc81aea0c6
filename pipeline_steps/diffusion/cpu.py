"""What is peculiar to a CPU, behind one door: faster, and different by float rounding alone.

PyTorch multiplies float32 matrices by MKL, which leaves the AVX-512 units of AMD processors unused.
Here linear layers go through oneDNN, as convolutions do anyway, with weights laid out for it once:
measured 2.3 times as fast on an AMD EPYC (Zen 5), one thread. For sampling, an adapter's update is
added to the frozen weights, W + (alpha / r) B A, which in 16 bits would distort a small one, so on
a GPU adapters stay apart. Cross-attention's keys and values, which follow from the text alone, are
computed once per batch instead of at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_ONEDNN: Any = torch.ops.mkldnn

Affine = tuple[Tensor, Tensor | None]  # weight [out, in] and bias [out]


@runtime_checkable
class Adapted(Protocol):
    """A linear layer with adapters."""

    def merged(self, row: int | None) -> Affine:
        """Weight and bias with the update of one adapter in them."""


def can_fold(network: nn.Module) -> bool:
    """Whether :func:`folded` works for a network: its weights are float32 on a CPU with oneDNN."""
    example = next(network.parameters())
    return (
        example.device.type == "cpu"
        and example.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(_ONEDNN, "_linear_pointwise")
    )


@contextmanager
def folded(network: nn.Module, row: int | None) -> Iterator[None]:
    """Give a network faster layers for the length of the block; no gradient passes them.

    Args:
        network: diffusers' UNet2DConditionModel, with or without adapters on it.
        row: Which of the adapters counts; None where there are none.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        with torch.no_grad():
            for parent, name, new in _replacements(network, row):
                replaced.append((parent, name, getattr(parent, name)))
                setattr(parent, name, new)
        yield
    finally:
        for parent, name, layer in replaced:
            setattr(parent, name, layer)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` by oneDNN where it is there (single precision on a CPU); no gradients."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        result: Tensor = _ONEDNN._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def is_written_out(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`written_out_linear` works: full precision on a CPU, and not compiled."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def written_out_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """``lora.grouped_linear`` with its derivatives, in the orders that are fast here.

    Low-rank factors are kept as rows: a thin matrix as the left factor is up to five times faster
    than as the right one. Sums go into the frozen product in place.
    """
    result: Tensor = _WrittenOut.apply(x, weight, bias, down, up, scale)
    return result


class _WrittenOut(torch.autograd.Function):
    """Forward and backward; the frozen weights get no gradient."""

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


class FrozenLinear(nn.Module):
    """A linear layer y = W x + b without gradient.

    Args:
        weight: float32 [out, in] on the CPU.
        bias: float32 [out] or None.
        constant_input: Keep the last result and return it as long as the very same tensor comes
            in, as a text's encoding does in every denoising step.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, constant_input: bool = False
    ) -> None:
        super().__init__()
        self._weight = weight.detach().contiguous()
        self._bias = None if bias is None else bias.detach()
        self._packed: Tensor | None = None
        self._constant_input = constant_input
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., in] -> [..., out]."""
        if self._last is not None and self._last[0] is x:
            return self._last[1]
        if self._packed is None:  # in the layout that suits this number of rows
            rows = x.numel() // x.shape[-1]
            self._packed = _ONEDNN._reorder_linear_weight(self._weight, rows)
        y: Tensor = _ONEDNN._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        if self._constant_input:
            self._last = (x, y)
        return y


class FrozenGeglu(nn.Module):
    """Value times gelu(gate), both linear in x (Shazeer, 2020), without gradient.

    Args:
        weight: float32 [2 * out, in]: first the value's rows, then the gate's, as in diffusers.
        bias: float32 [2 * out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        biases = (None, None) if bias is None else bias.chunk(2)
        value, gate = weight.chunk(2)
        self.value = FrozenLinear(value, biases[0])
        self.gate = FrozenLinear(gate, biases[1])

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., in] -> [..., out]."""
        value: Tensor = self.value(x)
        return value.mul_(F.gelu(self.gate(x)))


def _replacements(
    network: nn.Module, row: int | None
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    from diffusers.models.activations import GEGLU

    for parent in list(network.modules()):
        if isinstance(parent, (GEGLU, Adapted)):
            continue  # replaced as a whole
        constant = _text_layers(parent)
        for name, layer in list(parent.named_children()):
            inner = layer.proj if isinstance(layer, GEGLU) else layer
            if isinstance(inner, Adapted):
                weight, bias = inner.merged(row)
            elif isinstance(inner, nn.Linear):
                weight, bias = inner.weight, inner.bias
            else:
                continue
            if isinstance(layer, GEGLU):
                yield parent, name, FrozenGeglu(weight, bias)
            else:
                yield parent, name, FrozenLinear(weight, bias, constant_input=name in constant)


def _text_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers of an attention block that see nothing but the text."""
    from diffusers.models.attention_processor import Attention

    if isinstance(module, Attention) and module.is_cross_attention and not module.norm_cross:
        return ("to_k", "to_v")
    return ()
