"""LoRA weights on disk: the format that ``pipe.load_lora_weights(folder)`` of diffusers opens.

Keys are ``unet.<layer>.lora_A.weight`` and ``.lora_B.weight``; rank and alpha stand in the header
under diffusers' own name. All spellings that diffusers and PEFT have written are read:

====================================================  ==============================================
<layer>.lora_A.weight, .lora_B.weight                 diffusers since 0.28, PEFT
<layer>.lora_A.default.weight                         PEFT's state dict, with the adapter's name
<layer>.lora.down.weight, .lora.up.weight             diffusers 0.22 to 0.27
<layer>.lora_linear_layer.down.weight                 the same, of some scripts
<attention>.processor.to_q_lora.down.weight           diffusers up to 0.21; to_out is to_out.0
====================================================  ==============================================

before them ``unet.``, ``base_model.model.``, both, or nothing (diffusers up to 0.16); beside them
``<layer>.alpha`` where the file's header does not say alpha. Where nothing says alpha it is the
rank, as diffusers takes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline_steps.diffusion.adapters.bank import Adapter, AdapterBank
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError

FILE_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"

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
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in adapter.items():
        tensors[f"unet.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = up.contiguous()
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
    """Read an adapter of the denoising network.

    Args:
        folder: Holds ``pytorch_lora_weights.safetensors``.

    Returns:
        The adapter, its rank and its alpha.

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
    parts, foreign = _sorted_by_part(tensors)
    if foreign:
        raise StepError(
            f"{path} holds {foreign[0]!r} and {len(foreign) - 1} others that are no LoRA of a "
            "denoising network: adapters of text encoders and other kinds are not supported"
        )
    downs, ups = parts["down"], parts["up"]
    if not downs or set(downs) != set(ups):
        raise StepError(f"{path} holds no LoRA pairs of a denoising network (unet.*.lora_A.weight)")
    adapter = {name: (downs[name].float(), ups[name].float()) for name in downs}
    ranks = {down.shape[0] for down, _ in adapter.values()}
    if len(ranks) != 1:
        raise StepError(f"{path} mixes the ranks {sorted(ranks)}; one rank is supported")
    rank = ranks.pop()
    return adapter, rank, _alpha(path, header, parts["alpha"], rank)


def _sorted_by_part(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by part and layer, and the names of those that are something else."""
    parts: dict[str, dict[str, Tensor]] = {"down": {}, "up": {}, "alpha": {}}
    foreign = []
    for name, tensor in sorted(tensors.items()):
        key = parse_key(name)
        if key is None:
            foreign.append(name)
        else:
            parts[key.part][key.layer] = tensor
    return parts, foreign


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
    """What a tensor is.

    Attributes:
        layer: Name of the layer in the denoising network.
        part: "down" (A), "up" (B) or "alpha".
    """

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
