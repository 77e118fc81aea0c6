"""Whether a file is what its name says, where no pinned hash tells: a server may send anything."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library allows
# How a file of torch.save before version 1.6 begins: its magic number in a pickle of protocol 2.
OLD_CHECKPOINT = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
ERRORS = {"error", "errors", "message", "detail", "status"}  # keys of a server's excuse


def why_unlike(path: Path, name: str) -> str:
    """Why a file cannot be what its name's ending says, in some words; empty where it can.

    Safetensors: a header, and as many bytes as it announces. ONNX: a graph. Checkpoints of torch:
    an archive with a pickle, which is not read, or the old magic number. JSON: as such, and no
    server's error. Other files: no page and no JSON.
    """
    try:
        LOOKS.get(Path(name).suffix.lower(), _require_no_page)(path)
    except Exception as error:  # decoders raise whatever they like
        start = path.read_bytes()[:40] if path.is_file() else b""
        return f"{path.stat().st_size} bytes that are no {name} ({error}; it begins with {start!r})"
    return ""


def _require_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(size, LARGEST_HEADER):
            raise ValueError("no safetensors header")
        header: dict[str, Any] = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if not ends or 8 + length + max(ends) != size:
        raise ValueError(f"its header announces {max(ends, default=0)} bytes of tensors")


def _require_onnx(path: Path) -> None:
    import onnx

    if not onnx.load(path, load_external_data=False).graph.node:
        raise ValueError("an ONNX file without a graph")


def _require_checkpoint(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(os.path.basename(name) == "data.pkl" for name in archive.namelist()):
                raise ValueError("an archive that torch did not write")
        return
    with path.open("rb") as stream:
        if stream.read(len(OLD_CHECKPOINT)) != OLD_CHECKPOINT:
            raise ValueError("neither an archive nor torch's magic number")


def _require_json(path: Path) -> None:
    content = json.loads(path.read_bytes())
    if isinstance(content, dict) and len(content) < 8 and ERRORS & content.keys():
        raise ValueError("a server's error")


def _require_no_page(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(512).lstrip()
    if not start or start[:1] in (b"<", b"{"):
        raise ValueError("a page, an error in JSON, or nothing")


LOOKS = {
    ".safetensors": _require_safetensors,
    ".onnx": _require_onnx,
    ".json": _require_json,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), _require_checkpoint),
}
