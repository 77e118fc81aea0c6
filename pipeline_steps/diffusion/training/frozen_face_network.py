"""A recognition network made ready for gradients by its input alone.

With frozen weights, batch normalisation after a convolution is part of the convolution, and PReLU's
derivative by its slope is of no use; both otherwise take a third of the network's time on a CPU.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline_steps.faces.iresnet import IResidualBlock, IResNet


def frozen_copy(network: IResNet) -> IResNet:
    """A copy in evaluation mode that computes the same embeddings up to float rounding."""
    frozen: Any = copy.deepcopy(network)
    frozen.eval().requires_grad_(False)
    frozen.conv1, frozen.bn1 = _fused(frozen.conv1, frozen.bn1)
    for block in frozen.modules():
        if isinstance(block, IResidualBlock):
            _fuse_block(block)
    for parent in list(frozen.modules()):
        if isinstance(getattr(parent, "prelu", None), nn.PReLU):
            parent.prelu = FrozenPReLU(parent.prelu)
    result: IResNet = frozen.requires_grad_(False).to(memory_format=torch.channels_last)
    return result


def _fuse_block(block: Any) -> None:
    block.conv1, block.bn2 = _fused(block.conv1, block.bn2)
    block.conv2, block.bn3 = _fused(block.conv2, block.bn3)
    if block.downsample is not None:
        block.downsample = nn.Sequential(*_fused(*block.downsample))


class FrozenPReLU(nn.Module):
    """PReLU without a gradient of its slopes."""

    slope: Tensor

    def __init__(self, layer: nn.PReLU) -> None:
        super().__init__()
        self.register_buffer("slope", layer.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, ...] -> the same shape."""
        result: Tensor = _PReLU.apply(x, self.slope)
        return result


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope.to(x.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        scaled = gradient * slope.to(gradient.dtype).view(-1, *([1] * (x.ndim - 2)))
        return torch.where(x > 0, gradient, scaled), None


def _fused(convolution: Any, normalisation: Any) -> tuple[Any, Any]:
    return fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
