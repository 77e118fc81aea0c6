"""Arrays with their file names and metadata, as safetensors whose bytes depend on content alone."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.runtime.errors import StepError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Feature rows and the files they came from.

    Attributes:
        features: float32 [n, d].
        files: n names, one per row.
        metadata: What else the writer noted, text by text.
    """

    features: NDArray[np.float32]
    files: list[str]
    metadata: dict[str, str]


def save_features(
    path: str | os.PathLike[str],
    features: NDArray[np.float32],
    files: Sequence[str],
    *,
    key: str = "features",
    **metadata: str,
) -> None:
    """Write feature rows atomically.

    Args:
        path: The file to write.
        features: float32 [n, d]; other float types are converted.
        files: n names, stored in the header as the JSON list ``files``.
        key: Name of the tensor: "features", or "embeddings" for face embeddings.
        metadata: Further header entries; all values are text.

    Raises:
        ValueError: shape and names disagree.
        StepError: a value is not finite.
    """
    rows = np.ascontiguousarray(features, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(files):
        raise ValueError(f"{path}: features {list(rows.shape)} do not fit {len(files)} files")
    _require_finite(path, rows, files)
    save_tensors(path, {key: rows}, {**metadata, "files": json.dumps(list(files))})


def load_features(
    path: str | os.PathLike[str],
    *,
    key: str = "features",
    made_by: Mapping[str, str] | None = None,
) -> Features:
    """Read what :func:`save_features` wrote.

    Args:
        path: The file.
        key: Name of the tensor.
        made_by: What the header has to say, see ``weights.made_by``: the reader's own network.

    Raises:
        StepError: the file is missing or broken, has no tensor of that name, holds values that are
            not finite, or another network made it.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise StepError(f"features {path} are missing: run the step that writes them first")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if key not in file.keys():  # noqa: SIM118 - not a mapping
                raise StepError(f"{path} has no tensor {key!r}; it has {sorted(file.keys())}")
            rows = cast("NDArray[np.float32]", file.get_tensor(key).astype(np.float32, copy=False))
        files = [str(name) for name in json.loads(metadata.pop("files"))]
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise StepError(f"features {path} are broken ({error}): delete and run again") from error
    if rows.ndim != 2 or len(rows) != len(files):
        raise StepError(f"{path}: {list(rows.shape)} rows do not fit {len(files)} file names")
    _require_finite(path, rows, files)
    if differing := difference(metadata, made_by or {}):
        raise StepError(
            f"{path} was not made by the network that is used now: {differing}; run the step that "
            "writes it again"
        )
    return Features(rows, files, metadata)


def header_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """What the writer of a safetensors file noted, text by text."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _require_finite(
    path: str | os.PathLike[str], rows: NDArray[np.float32], files: Sequence[str]
) -> None:
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise StepError(
            f"{os.fspath(path)}: {len(broken)} of {len(rows)} rows hold NaN or infinity, that of "
            f"{files[broken[0]]} first: the network's weights are broken, or too large for its "
            "precision; fetch them again and run the step that writes this file"
        )


def difference(header: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """How a header differs from what it should say, in words; empty where it says all of it."""
    for name, value in wanted.items():
        if header.get(name) != value:
            return f"{name.replace('_', ' ')} {_short(header.get(name))}, not {_short(value)}"
    return ""


def _short(value: str | None) -> str:
    return "none" if not value else value if len(value) <= 40 else f"{value[:12]}…"


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write NumPy arrays or torch tensors as safetensors, atomically and with stable bytes."""
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save
    else:
        from safetensors.torch import save  # type: ignore[assignment]
    content = save(dict(tensors), dict(metadata) if metadata else None)
    write_bytes(path, canonical_safetensors(content))


def canonical_safetensors(content: bytes) -> bytes:
    """The same safetensors file with sorted header keys.

    The library writes header metadata in the order of a hash table that differs between runs;
    the tensors' bytes are not touched. Format: 8-byte little-endian header length, JSON header
    padded with spaces to 8 bytes, data.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; the host goes on at once, and a GPU's later work sees the copy.

    A plain ``tensor.to("cuda")`` waits until the GPU has done all that it was given before: that
    memory is not pinned. Pinned memory is given back to its pool when the copy is done.
    """
    if str(device).startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def release(device: torch.device | str) -> None:
    """Give back the memory that failed or finished work has left in caches."""
    gc.collect()
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
