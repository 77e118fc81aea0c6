"""Low-rank adapters of many identities over one frozen network.

Every target linear layer holds its frozen weight W and the stacked adapters A [K, r, in] and
B [K, out, r]. A batch is grouped by identity, y = W x + (alpha / r) B_k A_k x. The loss is summed
over identities, so the gradient of slice k belongs to identity k alone and training K identities
together equals K separate runs. Source: LoRA (Hu et al., 2022), in the parametrisation of PEFT.

On disk each is one file that ``pipe.load_lora_weights(folder)`` of diffusers opens; all spellings
that diffusers and PEFT have written are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.diffusion.cpu import is_written_out, written_out_linear
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError

Adapter = dict[str, tuple[Tensor, Tensor]]  # layer name -> (A [r, in], B [out, r])


class GroupedLoraLinear(nn.Module):
    """A frozen linear layer with one low-rank update per identity."""

    def __init__(self, base: nn.Linear, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.down, self.up, self.scale = base, down, up, scale
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


class _Place(NamedTuple):
    """Where one matrix of a layer lies in a row of the bank."""

    columns: slice
    shape: tuple[int, int]


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
        self.network, self.rank = network, rank
        self._places, size = _layout(layers, rank)  # of A and B of each layer
        example = next(iter(layers.values())).weight
        # Adapters are trained in full precision over a network that may be in half.
        dtype = torch.promote_types(example.dtype, torch.float32)
        self.weights = nn.Parameter(torch.zeros(count, size, dtype=dtype, device=example.device))
        self._layers: dict[str, GroupedLoraLinear] = {}
        for name, (down, up) in self._places.items():
            grouped = GroupedLoraLinear(
                layers[name], self._view(down), self._view(up), alpha / rank
            )
            _replace(network, name, grouped)
            self._layers[name] = grouped

    def __len__(self) -> int:
        return len(self.weights)

    def collect_gradients(self) -> Tensor:
        """Move what backward passes have added up to ``weights.grad`` and return it, [K, P]."""
        parameters = [part for layer in self._layers.values() for part in (layer.down, layer.up)]
        columns = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.weights.grad = torch.cat([column.flatten(1) for column in columns], dim=1)
        self.drop_gradients()
        return self.weights.grad

    def drop_gradients(self) -> None:
        """Forget what backward passes have added up."""
        for layer in self._layers.values():
            layer.down.grad = layer.up.grad = None

    def _view(self, place: _Place) -> nn.Parameter:
        """A parameter whose data are columns of the bank's matrix."""
        return nn.Parameter(self.weights.detach()[:, place.columns].unflatten(1, place.shape))

    def initialise(self, k: int, generator: torch.Generator, init: str = "gaussian") -> None:
        """Draw A of identity k and set its B to zero, as PEFT does.

        Args:
            k: Row.
            generator: The identity's own CPU generator.
            init: "gaussian" (standard deviation 1/r) or "kaiming" (uniform in +-1/sqrt(in)).
        """
        with torch.no_grad():
            for down, up in self._places.values():
                row = torch.empty(down.shape, dtype=torch.float32)
                if init == "gaussian":
                    row.normal_(std=1.0 / self.rank, generator=generator)
                elif init == "kaiming":
                    bound = down.shape[1] ** -0.5
                    row.uniform_(-bound, bound, generator=generator)
                else:
                    raise ValueError(f"initialisation {init!r}: gaussian or kaiming expected")
                self.weights[k, down.columns] = row.flatten().to(self.weights)
                self.weights[k, up.columns] = 0.0

    compiles = True
    condition = None

    def activate(self, rows: Sequence[int] | None, *_: object) -> None:
        """Choose the adapters of the groups of the following batches; None: all K in order."""
        whole = rows is None or list(rows) == list(range(len(self)))
        active = None if whole else torch.tensor(rows, device=self.weights.device)
        for layer in self._layers.values():
            layer.active = active

    def adapter(self, k: int) -> Adapter:
        """Copies of identity k's matrices by layer name, on the CPU."""
        row = self.weights.detach()[k].cpu()

        def matrix(place: _Place) -> Tensor:
            return row[place.columns].view(place.shape).clone()

        return {name: (matrix(down), matrix(up)) for name, (down, up) in self._places.items()}

    def load(self, k: int, adapter: Adapter) -> None:
        """Set identity k's matrices.

        Raises:
            ValueError: the layers or their shapes are not this network's.
        """
        if odd := sorted(set(adapter) ^ set(self._places)):
            raise ValueError(f"the adapter's layers are not this network's, e.g. {odd[0]}")
        for name, places in self._places.items():
            found, expected = (
                [list(part.shape) for part in both] for both in (adapter[name], places)
            )
            if found != expected:
                raise ValueError(
                    f"layer {name} has A {found[0]} and B {found[1]}, "
                    f"expected {expected[0]} and {expected[1]}"
                )
            with torch.no_grad():
                for part, place in zip(adapter[name], places, strict=True):
                    self.weights[k, place.columns] = part.flatten().to(self.weights)

    def remove(self) -> None:
        """Give the network its own layers back."""
        for name, layer in self._layers.items():
            _replace(self.network, name, layer.base)


def _layout(
    layers: dict[str, nn.Linear], rank: int
) -> tuple[dict[str, tuple[_Place, _Place]], int]:
    places, start = {}, 0
    for name, layer in layers.items():
        middle = start + rank * layer.in_features
        end = middle + layer.out_features * rank
        places[name] = (
            _Place(slice(start, middle), (rank, layer.in_features)),
            _Place(slice(middle, end), (layer.out_features, rank)),
        )
        start = end
    return places, start


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


FILE_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"

# <layer>.lora_A.weight, .lora_B.weight                diffusers since 0.28, PEFT
# <layer>.lora_A.default.weight                        PEFT's state dict, with the adapter's name
# <layer>.lora.down.weight, .lora.up.weight            diffusers 0.22 to 0.27
# <layer>.lora_linear_layer.down.weight                the same, of some scripts
# <attention>.processor.to_q_lora.down.weight          diffusers up to 0.21; to_out is to_out.0
# with ``unet.``, ``base_model.model.``, both, or nothing (diffusers up to 0.16) before them, and
# <layer>.alpha beside them where the header says none; where nothing does it is the rank.
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:unet\.)?(?:base_model\.model\.)?")
_PROCESSOR = re.compile(r"\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight$")
_LAYER = re.compile(
    r"\.(?:lora_(?P<letter>[AB])(?:\.[^.]+)?|lora(?:_linear_layer)?\.(?P<word>down|up))\.weight$"
)
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up"}
_OTHER_NETWORKS = ("text_encoder.", "text_encoder_2.", "transformer.", "vae.")


def save_lora(
    folder: str | os.PathLike[str],
    adapter: Adapter,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
) -> Path:
    """Write one identity's adapter atomically and return the file's path."""
    tensors = {
        f"unet.{name}.lora_{letter}.weight": matrix.contiguous()
        for name, matrices in adapter.items()
        for letter, matrix in zip("AB", matrices, strict=True)
    }
    header = {
        "unet.r": rank,
        "unet.lora_alpha": alpha,
        "unet.target_modules": sorted(targets),
        "unet.init_lora_weights": "gaussian",
    }
    path = Path(folder) / FILE_NAME
    save_tensors(path, tensors, {"format": "pt", METADATA_KEY: json.dumps(header, sort_keys=True)})
    return path


def load_lora(folder: str | os.PathLike[str]) -> tuple[Adapter, int, float]:
    """Read the adapter of a folder: the matrices, their rank and alpha.

    Raises:
        StepError: the file is missing, broken, or holds anything but one adapter of one rank.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise StepError(f"fine-tuned weights {path} are missing: run finetune for this identity")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise StepError(
            f"{path} is broken ({error}): make it again with snakemake --forcerun finetune, which "
            "keeps whatever is whole"
        ) from error
    known = {name: parse_key(name) for name in sorted(tensors)}
    if foreign := [name for name, key in known.items() if key is None]:
        raise StepError(
            f"{path} holds {foreign[0]!r} and {len(foreign) - 1} others that are no LoRA of a "
            "denoising network: adapters of text encoders and other kinds are not supported"
        )
    parts: dict[str, dict[str, Tensor]] = {"down": {}, "up": {}, "alpha": {}}
    for name, key in known.items():
        if key is not None:
            parts[key.part][key.layer] = tensors[name]
    downs, ups = parts["down"], parts["up"]
    if not downs or set(downs) != set(ups):
        raise StepError(f"{path} holds no LoRA pairs of a denoising network (unet.*.lora_A.weight)")
    adapter = {name: (downs[name].float(), ups[name].float()) for name in downs}
    for name, matrices in adapter.items():
        if not all(matrix.isfinite().all() for matrix in matrices):
            raise StepError(
                f"{path} holds NaN or infinity in layer {name}: its training diverged, train anew"
            )
    ranks = {down.shape[0] for down, _ in adapter.values()}
    if len(ranks) != 1:
        raise StepError(f"{path} mixes the ranks {sorted(ranks)}; one rank is supported")
    rank = ranks.pop()
    return adapter, rank, _alpha(path, header, parts["alpha"], rank)


def _alpha(path: Path, header: dict[str, Any], alphas: dict[str, Tensor], rank: int) -> float:
    """The one alpha of an adapter, from its header, else from its tensors, else the rank.

    With rank stabilisation the update is scaled by alpha / sqrt(rank); the alpha returned gives the
    same scale as alpha / rank.
    """
    odd = [name for name in ("alpha_pattern", "rank_pattern", "use_dora") if _of(header, name)]
    found = {float(tensor) for tensor in alphas.values()}
    stated = _of(header, "lora_alpha")
    if stated is not None:
        found = {float(stated)}
    if odd or len(found) > 1:
        what = ", ".join(odd) or f"the alphas {sorted(found)}"
        raise StepError(f"{path} has {what}; one rank and one alpha are supported")
    alpha = found.pop() if found else float(rank)
    return alpha * rank**0.5 if _of(header, "use_rslora") else alpha


def _of(header: dict[str, Any], name: str) -> Any:
    return header.get(f"unet.{name}", header.get(name))


def load_bank(network: nn.Module, folders: Sequence[Path]) -> AdapterBank:
    """Put the adapters of some folders on a network, in their order.

    Raises:
        StepError: an adapter is missing, broken, or does not fit the network or the others.
    """
    loaded = [load_lora(folder) for folder in folders]
    first, rank, alpha = loaded[0]
    bank = AdapterBank(network, count=len(loaded), rank=rank, alpha=alpha, targets=sorted(first))
    for k, (adapter, own_rank, own_alpha) in enumerate(loaded):
        try:
            if (own_rank, own_alpha) != (rank, alpha):
                raise ValueError(f"rank {own_rank} and alpha {own_alpha}, not {rank} and {alpha}")
            bank.load(k, adapter)
        except ValueError as error:
            raise StepError(f"weights in {folders[k]} do not fit: {error}") from error
    return bank


class LoraKey(NamedTuple):
    """What a tensor is: the layer in the denoising network, and down (A), up (B) or alpha."""

    layer: str
    part: str


def parse_key(key: str) -> LoraKey | None:
    """The meaning of a tensor's name; None: no part of a denoising network's LoRA."""
    if key.startswith(_OTHER_NETWORKS):
        return None
    name = _PREFIX.sub("", key)
    if found := _PROCESSOR.search(name):
        attention, layer = name[: found.start()], found[1]
        return LoraKey(f"{attention}.{'to_out.0' if layer == 'to_out' else layer}", found[2])
    if found := _LAYER.search(name):
        return LoraKey(name[: found.start()], _PARTS[found["letter"] or found["word"]])
    if name.endswith(".alpha"):
        return LoraKey(name.removesuffix(".alpha"), "alpha")
    return None
