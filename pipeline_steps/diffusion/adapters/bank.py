"""Low-rank adapters of many identities over one frozen network.

Every target linear layer holds its frozen weight W and the stacked adapters A [K, r, in] and
B [K, out, r]. A batch is grouped by identity, y = W x + (alpha / r) B_k A_k x. The loss is summed
over identities, so the gradient of slice k belongs to identity k alone and training K identities
together equals K separate runs. Source: LoRA (Hu et al., 2022), in the parametrisation of PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.diffusion.cpu import is_written_out, written_out_linear

Adapter = dict[str, tuple[Tensor, Tensor]]  # layer name -> (A [r, in], B [out, r])


class GroupedLoraLinear(nn.Module):
    """A frozen linear layer with one low-rank update per identity."""

    def __init__(self, base: nn.Linear, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = down
        self.up = up
        self.scale = scale
        self.active: Tensor | None = None  # int64 [g]: adapter of each group; None: all in order

    def forward(self, x: Tensor) -> Tensor:
        """x [g * b, ..., in], the b samples of one group side by side -> [g * b, ..., out]."""
        down: Tensor = self.down
        up: Tensor = self.up
        if self.active is not None:
            down, up = down[self.active], up[self.active]
        return grouped_linear(x, self.base.weight, self.base.bias, down, up, self.scale)

    def merged(self, row: int | None) -> tuple[Tensor, Tensor | None]:
        """W + s B A of one adapter, and the bias."""
        if row is None:
            raise ValueError("an adapter bank is on the network: say which of its rows counts")
        update = torch.mm(self.up[row], self.down[row])
        return torch.add(self.base.weight, update, alpha=self.scale), self.base.bias


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """W x + s B_k A_k x: a frozen linear map with one low-rank update per group of the batch.

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
    if is_written_out(x, weight):
        return written_out_linear(x, weight, bias, down, up, scale)
    frozen = F.linear(x, weight, bias)
    grouped = x.reshape(len(down), -1, x.shape[-1])
    total = torch.baddbmm(
        frozen.reshape(len(down), -1, frozen.shape[-1]),
        torch.bmm(grouped, down.mT.to(x.dtype)),
        up.mT.to(x.dtype),
        alpha=scale,
    )
    return total.reshape(frozen.shape)


@dataclass(frozen=True)
class _Slot:
    """Where one layer's A and B lie in a row of the bank."""

    name: str
    down: slice
    up: slice
    shape_down: tuple[int, int]
    shape_up: tuple[int, int]


class AdapterBank:
    """The adapters of K identities, one row each of a [K, P] matrix.

    Row k is identity k, so a per-identity norm is a row norm, and one elementwise optimiser over
    the matrix is K optimisers.

    Attributes:
        weights: float [K, P], a leaf that an optimiser can take. The layers' matrices are views of
            it; their gradients reach ``weights.grad`` by :meth:`collect_gradients`.
    """

    def __init__(
        self, network: nn.Module, *, count: int, rank: int, alpha: float, targets: Sequence[str]
    ) -> None:
        """Put ``count`` adapters, all zero, on the target layers of ``network``, which is frozen.

        Args:
            network: Changed in place until :meth:`remove`.
            count: Number of identities K.
            rank: r, >= 1.
            alpha: The update is scaled by alpha / r.
            targets: Ends of layer names at a dot, e.g. "to_q", "to_out.0".

        Raises:
            ValueError: no linear layer has such a name.
        """
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear)
            and any(name == target or name.endswith(f".{target}") for target in targets)
        }
        if not layers:
            raise ValueError(f"no linear layer is named {' or '.join(targets)}")
        network.requires_grad_(False)
        self.network = network
        self.rank = rank
        self.alpha = alpha
        self._slots, size = _layout(layers, rank)
        example = next(iter(layers.values())).weight
        # Adapters are trained in full precision over a network that may be in half.
        dtype = torch.promote_types(example.dtype, torch.float32)
        self.weights = nn.Parameter(torch.zeros(count, size, dtype=dtype, device=example.device))
        self._layers: dict[str, GroupedLoraLinear] = {}
        for slot in self._slots:
            grouped = GroupedLoraLinear(
                layers[slot.name],
                self._view(slot.down, slot.shape_down),
                self._view(slot.up, slot.shape_up),
                alpha / rank,
            )
            _replace(network, slot.name, grouped)
            self._layers[slot.name] = grouped

    def __len__(self) -> int:
        return len(self.weights)

    def collect_gradients(self) -> Tensor:
        """Move what backward passes have added up to ``weights.grad`` and return it, [K, P]."""
        columns = []
        for layer in self._layers.values():
            for parameter in (layer.down, layer.up):
                gradient = parameter.grad
                columns.append(torch.zeros_like(parameter) if gradient is None else gradient)
                parameter.grad = None
        self.weights.grad = torch.cat([column.flatten(1) for column in columns], dim=1)
        return self.weights.grad

    def drop_gradients(self) -> None:
        """Forget what backward passes have added up."""
        for layer in self._layers.values():
            layer.down.grad = layer.up.grad = None

    def _view(self, part: slice, shape: tuple[int, int]) -> nn.Parameter:
        """A parameter whose data are columns of the bank's matrix."""
        return nn.Parameter(self.weights.detach()[:, part].unflatten(1, shape))

    def initialise(self, k: int, generator: torch.Generator, init: str = "gaussian") -> None:
        """Draw A of identity k and set its B to zero, as PEFT does.

        Args:
            k: Row.
            generator: The identity's own CPU generator.
            init: "gaussian" (standard deviation 1/r) or "kaiming" (uniform in +-1/sqrt(in)).
        """
        with torch.no_grad():
            for slot in self._slots:
                row = torch.empty(slot.shape_down, dtype=torch.float32)
                if init == "gaussian":
                    row.normal_(std=1.0 / self.rank, generator=generator)
                elif init == "kaiming":
                    bound = slot.shape_down[1] ** -0.5
                    row.uniform_(-bound, bound, generator=generator)
                else:
                    raise ValueError(f"initialisation {init!r}: gaussian or kaiming expected")
                self.weights[k, slot.down] = row.flatten().to(self.weights)
                self.weights[k, slot.up] = 0.0

    def activate(self, rows: Sequence[int] | None) -> None:
        """Choose the adapters of the groups of the following batches; None: all K in order."""
        whole = rows is None or list(rows) == list(range(len(self)))
        active = None if whole else torch.tensor(rows, device=self.weights.device)
        for layer in self._layers.values():
            layer.active = active

    def adapter(self, k: int) -> Adapter:
        """Copies of identity k's matrices by layer name, on the CPU."""
        row = self.weights.detach()[k].cpu()
        return {
            slot.name: (
                row[slot.down].view(slot.shape_down).clone(),
                row[slot.up].view(slot.shape_up).clone(),
            )
            for slot in self._slots
        }

    def load(self, k: int, adapter: Adapter) -> None:
        """Set identity k's matrices.

        Raises:
            ValueError: the layers or their shapes are not this network's.
        """
        expected = {slot.name for slot in self._slots}
        if set(adapter) != expected:
            odd = sorted(set(adapter) ^ expected)
            raise ValueError(f"the adapter's layers are not this network's, e.g. {odd[0]}")
        with torch.no_grad():
            for slot in self._slots:
                down, up = adapter[slot.name]
                if tuple(down.shape) != slot.shape_down or tuple(up.shape) != slot.shape_up:
                    raise ValueError(
                        f"layer {slot.name} has A {list(down.shape)} and B {list(up.shape)}, "
                        f"expected {list(slot.shape_down)} and {list(slot.shape_up)}"
                    )
                self.weights[k, slot.down] = down.flatten().to(self.weights)
                self.weights[k, slot.up] = up.flatten().to(self.weights)

    def remove(self) -> None:
        """Give the network its own layers back."""
        for name, layer in self._layers.items():
            _replace(self.network, name, layer.base)


def _layout(layers: dict[str, nn.Linear], rank: int) -> tuple[list[_Slot], int]:
    slots, start = [], 0
    for name, layer in layers.items():
        middle = start + rank * layer.in_features
        end = middle + layer.out_features * rank
        slots.append(
            _Slot(
                name,
                slice(start, middle),
                slice(middle, end),
                (rank, layer.in_features),
                (layer.out_features, rank),
            )
        )
        start = end
    return slots, start


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
