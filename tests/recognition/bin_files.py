"""Small benchmark files, pickled as others wrote them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(n: int = 6, size: int = 112) -> np.ndarray:
    """Smooth colour pictures whose channels differ, so that swapped colours show."""
    ramp = np.linspace(0, 255, size)
    pictures = np.zeros((n, size, size, 3))
    for i in range(n):
        pictures[i, ..., 0] = ramp[None, :]
        pictures[i, ..., 1] = ramp[:, None] * i / n
        pictures[i, ..., 2] = 20 * i
    return pictures.astype(np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def put(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "set.bin"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
