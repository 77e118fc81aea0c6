"""The same or not? One key for everything that is kept because it is finished.

A result is made again exactly when its key changes: the settings that matter, the content of its
inputs, the content of the weights, the code that computes (see ``study.code``), and the seed. Names
of shares, sizes of batches, devices and places of files are no part of it.
"""

from __future__ import annotations

from typing import Any

from pipeline_steps.io.hashes import sha256_json
from pipeline_steps.io.weights import NO_WEIGHTS, Weights, verified_hashes
from pipeline_steps.study.settings.base import Frozen


def key(frozen: Frozen[Any], **parts: Any) -> str:
    """SHA-256 of all that a result follows from.

    Args:
        frozen: The step's configuration; of it count code, seed, and what its weights are: not its
            settings, for a step may have some that change how it works and not what comes out.
        parts: JSON values by name: the settings that matter, and hashes of the inputs.

    Raises:
        StepError: weights are missing, or are not the pinned ones.
    """
    weights = {role: weights_hash(entry) for role, entry in frozen.weights.items()}
    return sha256_json({"code": frozen.code, "seed": frozen.seed, "weights": weights, **parts})


def weights_hash(weights: Weights) -> str:
    """One hash of what a registry entry is: its files, and how they are read.

    Raises:
        StepError: the weights are missing, or are not the pinned ones.
    """
    files = {} if weights.source == NO_WEIGHTS else verified_hashes(weights)
    return sha256_json(
        {
            "files": files,
            "architecture": weights.architecture,
            "options": weights.options,
        }
    )
