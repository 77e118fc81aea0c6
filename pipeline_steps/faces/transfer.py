"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; the host goes on at once, and a GPU's later work sees the copy.

    A plain ``tensor.to("cuda")`` waits until the GPU has done all that it was given before: that
    memory is not pinned. Pinned memory is given back to its pool when the copy is done.
    """
    target = torch.device(device)
    if target.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(target, non_blocking=True)
    return tensor.to(target)
