"""Keys of finished results: a hash of everything that a result follows from.

A result is kept as long as its key is the same. Names of cohorts, batch sizes and devices are no
part of it; the code is, without its comments and docstrings.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from pipeline_steps.io.hashes import sha256_bytes, sha256_json
from pipeline_steps.io.weights import PROJECT_ROOT, Weights, verified_hashes


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


PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name

# Modules that say how something is written, shown or checked, never what comes out. Settings are
# followed by value, through the frozen configurations.
# The choice of a step counts where it is asked for: as one of ``more`` below.
COSMETIC = frozenset(
    f"{NAME}.{name}"
    for name in (
        "runtime.command_line",
        "runtime.allocator",
        "diffusion.training.checkpoints",
        "diffusion.training.choice",
        "diffusion.training.cohort_plan",
        "study.key",
        "diffusion.training.finetune_key",
        "diffusion.training.fleet_state",
        "diffusion.training.loss_report",
        "diffusion.training.memory",
        "diffusion.training.runtime",
        "diffusion.training.choice_plot",
        "evidence.origins",
        "io.atomic",
        "runtime.errors",
        "io.hashes",
        "runtime.lease",
        "study.record",
        "runtime.logs",
        "runtime.machine",
        "io.manifests",
        "runtime.run_lock",
        "runtime.signals",
        "io.tensors",
        "io.weights",
    )
)
COSMETIC_PACKAGES = (f"{NAME}.study.settings", f"{NAME}.study")


def modules_behind(step: str, *more: str) -> list[str]:
    """The step's module and all modules of this package that it imports, directly or not.

    Imports inside functions count, those for type checking too. Cosmetic modules and what only they
    import are left out. A module's data files (``page.html.j2`` of ``page.py``) come with it.

    Args:
        step: Module name within the package, e.g. "finetune".
        more: Modules that count although it does not import them by name, or does so only for an
            option, e.g. "diffusion.methods.idbooth".

    Returns:
        Paths relative to the project's root, sorted.
    """
    asked_for = [f"{NAME}.{module}" for module in (step, *more)]
    found = [
        file
        for module in _closure(step, *more)
        if (module in asked_for or not _cosmetic(module)) and not _empty(module)
        for file in (_file(module), *_data_files(_file(module)))
    ]
    return sorted(f"{NAME}/{file.relative_to(PACKAGE).as_posix()}" for file in found)


def _closure(*starts: str) -> set[str]:
    seen: set[str] = set()
    waiting = [f"{NAME}.{start}" for start in starts]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module.removeprefix(f"{NAME}.") in starts or not _cosmetic(module):
            waiting.extend(_imports(module))
    return seen


def _empty(module: str) -> bool:
    """Whether a module is nothing but its docstring, as most packages' ``__init__`` are."""
    return len(_tree(module).body) <= 1


def _cosmetic(module: str) -> bool:
    in_package = any(module == name or module.startswith(f"{name}.") for name in COSMETIC_PACKAGES)
    return module in COSMETIC or in_package


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules of this package that one module imports, packages' ``__init__`` included."""
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    inside = {name for name in names if name.startswith(f"{NAME}.")}
    parents = {name.rpartition(".")[0] for name in inside} - {NAME}
    return frozenset(name for name in inside | parents if _exists(name))


def _data_files(module: Path) -> list[Path]:
    siblings = module.parent.glob(f"{module.stem}.*")
    return [path for path in siblings if path.suffix not in (".py", ".pyi", ".pyc")]


def _exists(module: str) -> bool:
    return _file(module).is_file()


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
