"""Imports go down only, and nowhere round in a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pipeline_steps"

# Lowest first; what is not named here is a step, above all others.
ORDER = (
    *("seeds", "naming"),
    "runtime",
    "io",
    *("diffusion.objectives", "diffusion.methods"),
    "study",
    "metrics",
    "faces",
    "identities",
    "diffusion",
    "recognition",
    "evidence",
    "demo_world",
    "preflight",
)
SAME = ({"seeds", "naming"}, {"diffusion.objectives", "diffusion.methods"})  # on one floor

# Imports that go up all the same, each with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}


@cache
def imports() -> dict[str, set[str]]:
    """Module below the package to the modules that it imports, wherever in it the import stands."""
    return {name: _imports(name) for name in modules()}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(name: str) -> set[str]:
    named: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("pipeline_steps.") in modules()
                named.add(inner if is_module else str(node.module))
    inside = {
        module.removeprefix("pipeline_steps.")
        for module in named
        if module.startswith("pipeline_steps.")
    }
    return inside & modules().keys() - {name}


def floor(module: str) -> int:
    """How high a module stands in ORDER."""
    rooms = [room for room in ORDER if module == room or module.startswith(f"{room}.")]
    if not rooms:
        return len(ORDER)
    room = max(rooms, key=len)
    return min(ORDER.index(other) for other in next((s for s in SAME if room in s), {room}))


def test_every_package_has_its_floor() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == {room.partition(".")[0] for room in ORDER} - {"seeds", "naming"}


def test_imports_go_down_only() -> None:
    upward = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if floor(other) > floor(name)
    }
    assert not upward - EXCEPTIONS.keys(), "these imports go up"
    assert not EXCEPTIONS.keys() - upward, "these are no exceptions any more: take them out"


def test_there_are_no_circles_among_modules() -> None:
    refuse_circles(imports())


def test_there_are_no_circles_among_rooms() -> None:
    """Folders of a package, such as diffusion/adapters and diffusion/training."""
    rooms: dict[str, set[str]] = {}
    for name, others in imports().items():
        found = rooms.setdefault(room(name), set())
        found |= {room(other) for other in others} - {room(name)}
    refuse_circles(rooms)


def room(module: str) -> str:
    """The folder that a module lies in; a module outside any room is one of its own."""
    parent = module.rpartition(".")[0]
    return parent if "." in parent else module


def refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_library_modules_import_no_step() -> None:
    """Nor does a step import another one: what two of them need is a library."""
    steps = {name for name in modules() if floor(name) == len(ORDER)} - {""}
    shared = {(name, other) for name, others in imports().items() for other in others & steps}
    assert not shared
