"""Random streams that depend on what they are for, never on when or beside what they run.

Every draw of the study comes from a generator keyed by (study seed, purpose, identity, ...). Adding
an identity, changing a batch size or the order of jobs therefore changes no other identity's draws.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer


def seed_for(seed: int, *keys: str | int) -> int:
    """Derive a seed from the study seed and the keys of one purpose.

    Args:
        seed: The study seed.
        keys: What the stream is for, e.g. ``("sample", "ID_3", 7)``. Order and type matter:
            ``1`` and ``"1"`` give different seeds.

    Returns:
        An integer in [0, 2**63), the same on every platform and in every release: the first
        63 bits of BLAKE2b over the canonical JSON of ``[seed, *keys]``.

    Raises:
        TypeError: a key is neither a string nor an integer.
    """
    for key in (seed, *keys):
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise TypeError(f"seed keys are strings or integers, not {type(key).__name__}: {key!r}")
    text = json.dumps([seed, *keys], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def numpy_generator(seed: int, *keys: str | int) -> np.random.Generator:
    """NumPy generator (PCG64) of the stream named by ``keys``, see :func:`seed_for`."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, *keys)))


def torch_generator(seed: int, *keys: str | int) -> torch.Generator:
    """CPU torch generator of the stream named by ``keys``, see :func:`seed_for`.

    On the CPU because CUDA generators give other numbers on other cards; draw there, then move.
    """
    import torch

    generator = torch.Generator(device="cpu")
    generator.manual_seed(seed_for(seed, *keys))
    return generator
