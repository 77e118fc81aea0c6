"""A tensor that claims to lie on a GPU, and what C++ would do to it before an operation runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
HIDDEN = torch.device("meta")  # what C++ takes the device for: autograd then needs no CUDA streams


class CardTensor(Tensor):
    """A tensor on the pretended card."""

    values: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> CardTensor:
        shell = torch.empty_strided(
            values.size(), values.stride(), dtype=values.dtype, device=HIDDEN
        )
        made: CardTensor = torch.Tensor._make_subclass(  # type: ignore[attr-defined]
            cls, shell, False, device_for_backend_keys=CUDA
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CardTensor({self.values})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{operation} on a card tensor outside of its card")


# Under autocast on CUDA: what runs in 16 bits, and what in 32 (PyTorch, "Autocast op reference").
LOWER = {
    "linear",
    "matmul",
    "__matmul__",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "conv2d",
    "prelu",
    "scaled_dot_product_attention",
}
FULL = {
    "layer_norm",
    "group_norm",
    "softmax",
    "log_softmax",
    "norm",
    "vector_norm",
    "pow",
    "__pow__",
    "exp",
    "rsqrt",
    "sum",
    "cosine_similarity",
    "mse_loss",
}


class CardFunctions(TorchFunctionMode):
    """What C++ would do before an operation is dispatched: autocast, and tensors from lists."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is Tensor.new_tensor and isinstance(args[0], CardTensor):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(CUDA)
        if torch.is_autocast_enabled("cuda"):
            name = getattr(function, "__name__", "")
            to = torch.float32 if name in FULL else None
            to = torch.get_autocast_dtype("cuda") if name in LOWER else to
            if to is not None:

                def cast(leaf: Any) -> Any:
                    on = isinstance(leaf, CardTensor) and leaf.is_floating_point()
                    return leaf.to(to) if on and leaf.dtype != torch.float64 else leaf

                args, kwargs = tree_map(cast, (tuple(args), dict(kwargs)))
        return function(*args, **kwargs)
