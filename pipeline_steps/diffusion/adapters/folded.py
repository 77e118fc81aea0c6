"""A denoising network made ready for sampling on a CPU, one adapter at a time.

The adapter's update is added to the frozen weights, W + (alpha / r) B A, in float32, where that
changes the result by float rounding only (in 16 bits it would distort a small update, so on a GPU
adapters stay apart). Linear layers go through oneDNN, and cross-attention's keys and values, which
follow from the text alone, are computed once per batch instead of at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline_steps.diffusion.adapters.bank import GroupedLoraLinear
from pipeline_steps.diffusion.sampling.cpu_layers import FrozenGeglu, FrozenLinear, onednn_available


def can_fold(network: nn.Module) -> bool:
    """Whether :func:`folded` works for a network: its weights are float32 on a CPU with oneDNN."""
    return onednn_available(next(network.parameters()))


@contextmanager
def folded(network: nn.Module, row: int | None) -> Iterator[None]:
    """Give a network faster layers for the length of the block; no gradient passes them.

    Args:
        network: diffusers' UNet2DConditionModel, with or without an adapter bank on it.
        row: Row of the bank whose adapter counts; None where there is no bank.
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


def _replacements(
    network: nn.Module, row: int | None
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    from diffusers.models.activations import GEGLU

    for parent in list(network.modules()):
        if isinstance(parent, (GEGLU, GroupedLoraLinear)):
            continue  # replaced as a whole
        constant = _text_layers(parent)
        for name, layer in list(parent.named_children()):
            inner = layer.proj if isinstance(layer, GEGLU) else layer
            if not isinstance(inner, (nn.Linear, GroupedLoraLinear)):
                continue
            weight, bias = _weight(inner, row)
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


def _weight(layer: nn.Linear | GroupedLoraLinear, row: int | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    if row is None:
        raise ValueError("an adapter bank is on the network: say which of its rows counts")
    update = torch.mm(layer.up[row], layer.down[row])
    return torch.add(layer.base.weight, update, alpha=layer.scale), layer.base.bias
