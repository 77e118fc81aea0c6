"""AdamW over a matrix of adapters, one row each: moments in single precision, or in 8 bits.

Nothing is shared between rows, so that row k moves as if it were alone, and its moments can be
taken to another fleet. Source: Loshchilov and Hutter, "Decoupled weight decay regularization",
ICLR 2019; Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.study.settings.diffusion import FinetuneSettings

BLOCK = 256  # values that share one scale
DECADES = 7  # of 8-bit codes, below their scale


class RowOptimiser(Protocol):
    """Updates the weights [K, P] by their gradients."""

    def update(self, rate: float) -> None:
        """One step at a learning rate."""

    def moments(self) -> dict[str, Tensor]:
        """Everything that the next update needs but weights and step, with a first axis of K."""

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Go on after ``step`` updates."""


def open_optimiser(weights: nn.Parameter, settings: FinetuneSettings) -> RowOptimiser:
    """The optimiser that the settings name, at step 0."""
    kind = AdamW8bit if settings.optimiser == "adamw8bit" else AdamW
    return kind(weights, settings)


class AdamW:
    """torch's AdamW; one fused kernel on a GPU."""

    def __init__(self, weights: nn.Parameter, settings: FinetuneSettings) -> None:
        self._weights = weights
        self._fused = weights.device.type == "cuda"
        self._inner = torch.optim.AdamW(
            [weights],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=self._fused,
        )
        zeros = torch.zeros_like(weights)
        self.load({"exp_avg": zeros, "exp_avg_sq": zeros}, 0)

    def update(self, rate: float) -> None:
        self._inner.param_groups[0]["lr"] = rate
        self._inner.step()

    def moments(self) -> dict[str, Tensor]:
        state = self._inner.state[self._weights]
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        weights = self._weights.detach()
        where = weights.device if self._fused else torch.device("cpu")
        self._inner.state[self._weights] = {
            "step": torch.tensor(float(step), device=where),
            "exp_avg": moments["exp_avg"].to(weights, copy=True).detach(),
            "exp_avg_sq": moments["exp_avg_sq"].to(weights, copy=True).detach(),
        }


class AdamW8bit:
    """AdamW whose moments are kept as 8-bit codes with one scale per block of 256 of a row.

    bitsandbytes' blocks run on from one parameter to the next; these end with the row, so that an
    identity's moments follow from its own gradients alone. Its exemption of parameters of less
    than 4096 values is not made.
    """

    def __init__(self, weights: nn.Parameter, settings: FinetuneSettings) -> None:
        self._weights = weights
        self._settings = settings
        self._step = 0
        device = weights.device
        self._codes = {
            "exp_avg": dynamic_map(signed=True).to(device),
            "exp_avg_sq": dynamic_map(signed=False).to(device),
        }
        self._moments: dict[str, Tensor] = {}
        for name in self._codes:
            self._store(name, torch.zeros_like(weights).detach())

    @torch.no_grad()
    def update(self, rate: float) -> None:
        gradient, settings = self._weights.grad, self._settings
        if gradient is None:
            raise ValueError("there is no gradient to update by")
        self._step += 1
        beta1, beta2 = settings.betas
        first = self._read("exp_avg").lerp_(gradient, 1 - beta1)
        second = self._read("exp_avg_sq").mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = second.sqrt().div_((1 - beta2**self._step) ** 0.5).add_(settings.eps)
        self._weights.mul_(1 - rate * settings.weight_decay)
        self._weights.addcdiv_(first, spread, value=-rate / (1 - beta1**self._step))
        self._store("exp_avg", first)
        self._store("exp_avg_sq", second)

    def moments(self) -> dict[str, Tensor]:
        return dict(self._moments)

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        self._step = step
        for name, held in self._moments.items():
            self._moments[name] = moments[name].to(held, copy=True)

    def _read(self, name: str) -> Tensor:
        codes, scales = self._moments[name], self._moments[f"{name}_scale"]
        return dequantise(codes, scales, self._codes[name], self._weights.shape[1])

    def _store(self, name: str, values: Tensor) -> None:
        codes, scales = quantise(values, self._codes[name])
        self._moments[name], self._moments[f"{name}_scale"] = codes, scales


def dynamic_map(*, signed: bool) -> Tensor:
    """The 256 values in [-1, 1] (or [0, 1]) that a code stands for, ascending, float32.

    Dynamic tree quantisation: seven decades, in each of which evenly spaced fractions between 0.1
    and 1, twice as many in each larger decade; and zero and one.
    """
    values = [0.0, 1.0]
    for decade in range(DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        middles = 10.0 ** (decade - DECADES + 1) * (edges[:-1] + edges[1:]) / 2
        values += middles.tolist()
        if signed:
            values += (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def quantise(values: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [K, P'] of values [K, P], P' up to a whole block, and scales float32 [K, B]."""
    rows, columns = values.shape
    blocks = F.pad(values.float(), (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    scales = blocks.abs().amax(dim=2)
    scaled = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    middles = (codes[1:] + codes[:-1]) / 2
    return torch.bucketize(scaled, middles).to(torch.uint8).view(rows, -1), scales


def dequantise(quantised: Tensor, scales: Tensor, codes: Tensor, columns: int) -> Tensor:
    """Values float32 [K, columns] of what :func:`quantise` returned."""
    values = codes[quantised.int()].view(len(quantised), -1, BLOCK) * scales[..., None]
    return values.view(len(quantised), -1)[:, :columns].contiguous()
