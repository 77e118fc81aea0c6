"""Keys of finished results: a hash of everything that a result follows from.

A result is kept as long as its key is the same. Names of cohorts, batch sizes and devices are no
part of it; the code is, without its comments and docstrings.
"""

from __future__ import annotations

import ast
from typing import Any

from pipeline_steps.files.hashes import sha256_bytes, sha256_json
from pipeline_steps.files.weights import PROJECT_ROOT, verified_hashes
from pipeline_steps.settings.base import Weights
from pipeline_steps.settings.code import modules_behind


def content_key(**parts: Any) -> str:
    """SHA-256 of JSON values by name."""
    return sha256_json(parts)


def weights_hash(weights: Weights) -> str:
    """One hash of all files of a registry entry.

    Raises:
        StepError: the weights are missing, or not the pinned ones.
    """
    return sha256_json(verified_hashes(weights))


def code_hash(step: str, *more: str) -> str:
    """Hash of the modules behind a step and behind ``more`` modules of this package.

    Comments, docstrings and layout do not count.
    """
    return sha256_json(
        {
            module: source_hash((PROJECT_ROOT / module).read_text(encoding="utf-8"))
            for module in modules_behind(step, *more)
        }
    )


def source_hash(source: str) -> str:
    """Hash of what Python source does."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return sha256_bytes(ast.dump(tree).encode())
