"""What is imported is declared in pyproject.toml, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

SCRIPTS = ("tests", "benchmarks", "docs")  # whose files import each other by their names

# Declared and never imported, with the reason.
NOT_IMPORTED = {
    "insightface": "the tools and conventions of the recognisers and benchmarks that users bring",
    "mypy": "a command",
    "pandas-stubs": "for mypy",
    "pytest-xdist": "of pytest -n",
    "ruff": "a command",
    "setuptools": "insightface and others import pkg_resources",
    "snakefmt": "a command",
    "snakemake-executor-plugin-slurm": "of snakemake --executor slurm",
    "types-pyyaml": "for mypy",
    "types-tqdm": "for mypy",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}  # type: ignore[index]


@cache
def imported(*folders: str) -> dict[str, set[str]]:
    """Top-level modules from elsewhere to the files that import them."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [str(node.module)]
                for name in names:
                    found.setdefault(name.partition(".")[0], set()).add(
                        path.relative_to(ROOT).as_posix()
                    )
    scripts = (path for part in SCRIPTS for path in (ROOT / part).rglob("*"))
    own = {path.stem for path in scripts} | {"pipeline_steps", *SCRIPTS}
    own |= sys.stdlib_module_names | {"nowhere"}  # of a test of imports
    return {name: files for name, files in found.items() if name not in own}


@pytest.mark.parametrize("folders", [("pipeline_steps", "envs"), ("tests", "benchmarks")])
def test_what_is_imported_is_declared(folders: tuple[str, ...]) -> None:
    allowed = declared(PROJECT["dependencies"])
    if "tests" in folders:
        allowed |= declared(PROJECT["optional-dependencies"]["dev"])
    known = packages_distributions()
    missing = {
        name: files
        for name, files in imported(*folders).items()
        if not {normal(of) for of in known.get(name, [name])} & allowed
    }
    assert not missing


def test_what_is_declared_is_imported() -> None:
    known = packages_distributions()
    used = {
        normal(of)
        for name in imported("pipeline_steps", "envs", "tests", "benchmarks")
        for of in known.get(name, [name])
    }
    used.add("snakemake")  # the Snakefile
    dev = PROJECT["optional-dependencies"]["dev"]
    unused = declared([*PROJECT["dependencies"], *dev]) - used
    assert unused == NOT_IMPORTED.keys()


def test_benchmarks_take_from_each_other_what_is_there() -> None:
    """Their command lines are only run by hand."""
    trees = {p.stem: ast.parse(p.read_text("utf-8")) for p in (ROOT / "benchmarks").glob("*.py")}
    named = {
        name: {
            node.id if isinstance(node, ast.Name) else getattr(node, "name", "")
            for statement in tree.body
            for node in ast.walk(statement)
        }
        for name, tree in trees.items()
    }
    taken = 0
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in named:
                missing = {alias.name for alias in node.names} - named[node.module]
                assert not missing, f"{name} takes {missing} from {node.module}"
                taken += 1
    assert taken > 20
