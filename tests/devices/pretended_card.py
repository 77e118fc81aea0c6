"""A GPU that is none: tensors that claim to lie on one, and a list of when the host waits for it.

What the code under test puts on "cuda" becomes a ``CardTensor``. To Python and to the
dispatcher (autocast, autograd, device checks) it lies on a CUDA device; its numbers are computed on
the CPU, so that results can be compared, or not at all (``values=False``: shapes and memory only,
at any size). As on a real card,

- an operation on tensors of both devices is an error, but for numbers and indices;
- a CPU tensor's NumPy array can be had, a card tensor's cannot;
- reading a number, counting what a mask selects, and copying from or to pageable memory make the
  host wait until the card is idle. ``Card.waits`` lists them.

What cannot be seen here: kernels' own errors and speed, CUDA graphs, and a copy that a later kernel
would have to wait for.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.devices.card_tensor import HIDDEN, CardFunctions, CardTensor

READS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "linalg_solve_ex",
    "_linalg_solve_ex",
}
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


@dataclass
class Card:
    """What has happened on a pretended card.

    Attributes:
        values: Whether numbers are computed.
        waits: Where the host waited for the card: operation and place, "file:line".
        held: Bytes of living tensors.
        peak: Most bytes since it was last set.
        total: Bytes that the card has.
    """

    values: bool = True
    waits: list[str] = field(default_factory=list)
    held: int = 0
    peak: int = 0
    total: int = 1 << 40
    _storages: dict[int, int] = field(default_factory=dict)

    def wait(self, why: str) -> None:
        """Note that the host waits."""
        frames = [f for f in traceback.extract_stack() if "/pipeline_steps/" in f.filename]
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "-"
        self.waits.append(f"{why} at {place}")

    def wrap(self, values: Tensor) -> CardTensor:
        """A card tensor of CPU (or meta) values."""
        if not self.values and values.device != HIDDEN:
            values = torch.empty_strided(
                values.size(), values.stride(), dtype=values.dtype, device=HIDDEN
            )
        storage = values.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = storage.nbytes()
            self._storages[key] = size
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, key)
        return CardTensor(values)

    def _free(self, key: int) -> None:
        self.held -= self._storages.pop(key)


class _Mode(TorchDispatchMode):
    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(  # type: ignore[override]
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves, _ = tree_flatten((args, kwargs))
        on_card = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
        on_cpu = [
            leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, CardTensor)
        ]
        wanted = kwargs.get("device")
        to_card = wanted is not None and torch.device(wanted).type in ("cuda", "meta")
        if not on_card and not to_card:
            return operation(*args, **kwargs)
        name = operation._schema.name.partition("::")[2]
        self._check(operation, name, args, on_card, on_cpu)
        self._note_waits(name, args, kwargs, on_card, to_card)
        if on_cpu and not self.card.values:
            plain_args, plain_kwargs = tree_map(self._shapes_of, (args, kwargs))
        else:
            plain_args, plain_kwargs = tree_map(_values_of, (args, kwargs))
        if "device" in plain_kwargs:
            plain_kwargs["device"] = torch.device("cpu") if self.card.values else HIDDEN
        return self._run(operation, name, args, plain_args, plain_kwargs, wanted, to_card)

    @staticmethod
    def _check(operation: Any, name: str, args: Any, on_card: Any, on_cpu: Any) -> None:
        if name in INDEXING:  # of a card tensor, indices may lie on the CPU, values may not
            alike = [args[0], *args[2:3]]
            wrong = not all(isinstance(t, CardTensor) or not t.ndim for t in alike)
        else:
            wrong = name not in ("copy_", "_to_copy") and any(tensor.ndim for tensor in on_cpu)
        if on_card and on_cpu and wrong:
            shapes = [(type(t).__name__, tuple(t.shape)) for t in (*on_card, *on_cpu)]
            raise RuntimeError(f"{operation}: tensors of both cuda:0 and cpu, {shapes}")

    def _note_waits(self, name: str, args: Any, kwargs: Any, on_card: Any, to_card: bool) -> None:
        card = self.card
        if name in READS and on_card:
            card.wait(name)
        elif name == "_to_copy":
            from_card = isinstance(args[0], CardTensor)
            if from_card and not to_card and kwargs.get("device") is not None:
                card.wait("copy from the card")
            elif not from_card and not _asynchronous(args[0], kwargs.get("non_blocking")):
                card.wait("copy to the card")
        elif name == "copy_":
            target, source = (isinstance(t, CardTensor) for t in args[:2])
            if source and not target:
                card.wait("copy from the card")
            elif (
                target
                and not source
                and args[1].ndim
                and not _asynchronous(args[1], args[2:] and args[2])
            ):
                card.wait("copy to the card")
        elif name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                card.wait("index by a mask")
            if not all(isinstance(index, CardTensor) for index in indices):
                card.wait("index on the CPU")

    def _run(
        self,
        operation: Any,
        name: str,
        args: Any,
        plain_args: Any,
        plain_kwargs: Any,
        wanted: Any,
        to_card: bool,
    ) -> Any:
        if name == "_local_scalar_dense" and not self.card.values:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if wanted is not None and not to_card:  # from the card
            if not self.card.values:
                source = args[0]
                return torch.zeros(source.shape, dtype=plain_kwargs.get("dtype") or source.dtype)
            return operation(*plain_args, **plain_kwargs)
        if name == "copy_" and not isinstance(args[0], CardTensor):
            if self.card.values:
                operation(*plain_args, **plain_kwargs)
            return args[0]
        result = operation(*plain_args, **plain_kwargs)
        same = {id(_values_of(leaf)): leaf for leaf in tree_flatten(args)[0]}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            before = same.get(id(value))
            return before if before is not None else self.card.wrap(value)

        return tree_map(wrapped, result)

    def _shapes_of(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and not isinstance(leaf, CardTensor):
            if leaf.ndim == 0:
                return leaf
            return leaf.to(HIDDEN)
        return _values_of(leaf)


def _values_of(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, CardTensor) else leaf


def _asynchronous(source: Tensor, non_blocking: Any = False) -> bool:
    return bool(non_blocking) and getattr(source, "in_pinned_memory", False)


def _pin(tensor: Tensor) -> Tensor:
    if isinstance(tensor, CardTensor):
        raise RuntimeError("cannot pin 'cuda' memory: only dense CPU tensors can be pinned")
    copy: Any = tensor.detach().clone()
    copy.in_pinned_memory = True
    return copy


@contextmanager
def pretended_card(*, values: bool = True, total: int = 1 << 40) -> Iterator[Card]:
    """A machine with one card for the length of the block."""
    card = Card(values=values, total=total)
    if not torch.cuda.is_available():
        torch._C._ensureCUDADeviceGuardSet()  # CUDA's current device is then 0, without a driver

    def reset_peak(*device: Any) -> None:
        card.peak = card.held

    replaced: dict[str, Any] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_bf16_supported": lambda *args: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.mem_get_info": lambda *device: (card.total - card.held, card.total),
        "torch.cuda.memory_reserved": lambda *device: card.held,
        "torch.cuda.max_memory_allocated": lambda *device: card.peak,
        "torch.cuda.reset_peak_memory_stats": reset_peak,
        "torch.cuda.synchronize": lambda *device: card.wait("synchronize"),
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.Tensor.pin_memory": _pin,
        # Views of tensors made in inference mode are C++'s own; without gradients is all it says.
        "torch.inference_mode": torch.no_grad,
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # A moved parameter is a new one: C++ could only exchange what is within the old one.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(CardFunctions())
        stack.enter_context(_Mode(card))
        yield card
