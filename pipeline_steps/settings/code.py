"""Which modules a step stands on: editing one of them has to run the step again."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name

# Modules that say how something is written, shown or checked, never what comes out. Settings are
# followed by value, through the frozen configurations.
# The choice of a step counts where it is asked for: as one of ``more`` below.
COSMETIC = frozenset(
    f"{NAME}.{name}"
    for name in (
        "command_line",
        "files.allocator",
        "diffusion.checkpoints",
        "diffusion.choice",
        "diffusion.cohort_plan",
        "diffusion.content_key",
        "diffusion.finetune_key",
        "diffusion.fleet_state",
        "diffusion.loss_report",
        "diffusion.memory",
        "diffusion.runtime",
        "evidence.choice_plot",
        "evidence.origins",
        "files.atomic",
        "files.errors",
        "files.hashes",
        "files.lease",
        "files.lineage",
        "files.logs",
        "files.machine",
        "files.manifests",
        "files.run_lock",
        "files.signals",
        "files.tensors",
        "files.weights",
    )
)
COSMETIC_PACKAGES = (f"{NAME}.settings",)


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
