"""Did the code change? One hash of the definitions that a computation stands on.

A root, such as ``finetune:run``, is a definition of this package. From it the definitions that it
names are followed, across modules, and those that these name; the hash is of them all, in a normal
form without comments, docstrings, layout, annotations and the texts of errors and log lines. So an
edit counts exactly where something that computes says something else. What lies in ``runtime`` (the
running process) and in ``study`` (settings, followed by value; keys; paths) computes nothing.

What is found by name while the program runs cannot be followed; it has to be a root of its own, as
a method's module is. The normal form is the same on all Python versions that the project runs on.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
OUTSIDE = ("runtime", "study")
SAID = frozenset({"debug", "info", "warning", "error", "exception"})  # methods of a logger
LOGGERS = frozenset({"log", "get_logger"})
# Fields of nodes that are for type checkers alone; type_params exist since Python 3.12.
UNSAID = frozenset({"annotation", "returns", "type_comment", "type_params", "kind", "ctx"})

Place = tuple[str, str]  # module below the package, definition


@dataclass(frozen=True)
class Module:
    """What a module defines and imports at its top level.

    Attributes:
        definitions: Name to the statements that define it.
        imports: Name to what it stands for: a definition of this package, or a module ("").
        effects: Statements that define nothing; they count with every definition of the module.
        libraries: Top-level modules from elsewhere that it imports, wherever in it.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, Place]
    effects: list[ast.stmt]
    libraries: set[str]


def code_hash(roots: Iterable[str], without: Iterable[str] = ()) -> str:
    """Hash of the code behind some definitions.

    Args:
        roots: ``<module below the package>:<definition>`` each.
        without: Likewise; these are not followed, whoever names them.

    Raises:
        KeyError: one of them is no definition.
    """
    return _hash(tuple(roots), tuple(without))


@cache
def _hash(roots: tuple[str, ...], without: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for _, text in sorted(texts_behind(roots, without).items()):
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def texts_behind(roots: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """``module:definition`` to its normal form, for all that stands behind some definitions.

    Data files in the folder of a module that counts, such as templates, are there by their paths.
    """
    waiting = [_place(root) for root in roots]
    passed_over = {_place(root) for root in without}
    found: dict[str, str] = {}
    while waiting:
        place = waiting.pop()
        label = ":".join(place)
        if label in found or place in passed_over:
            continue
        text, named = _definition(*place)
        found[label] = text
        waiting += named
    for folder in {_file(label.partition(":")[0]).parent for label in found}:
        found |= _data_files(folder)
    return found


def modules_behind(roots: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Modules, below the package, whose definitions stand behind some definitions."""
    texts = texts_behind(roots, without)
    return sorted({label.partition(":")[0] for label in texts if ":" in label})


def libraries_behind(roots: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    """Top-level modules, others' and the language's own, that the modules behind some definitions
    import."""
    return _libraries(tuple(roots), tuple(without))


@cache
def _libraries(roots: tuple[str, ...], without: tuple[str, ...]) -> set[str]:
    return set().union(*(read_module(name).libraries for name in modules_behind(roots, without)))


def _place(root: str) -> Place:
    module, _, name = root.partition(":")
    if name not in read_module(module).definitions:
        raise KeyError(f"{root} is no definition of the package")
    return module, name


@cache
def read_module(name: str) -> Module:
    """A module of the package, parsed.

    Args:
        name: Dotted, below the package.
    """
    text = _file(name).read_text(encoding="utf-8")
    module = Module({}, {}, [], set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE)))
    for statement in _statements(ast.parse(text).body):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            module.imports.update(_imported(statement))
            continue
        names = list(_defined(statement))
        for defined in names:
            module.definitions.setdefault(defined, []).append(statement)
        if not names and not _is_docstring(statement):
            module.effects.append(statement)
    return module


@cache
def _definition(module: str, name: str) -> tuple[str, tuple[Place, ...]]:
    """Normal form of a definition, and the definitions of this package that it names."""
    known = read_module(module)
    forms = [_statement(node, module) for node in [*known.definitions[name], *known.effects]]
    named = dict.fromkeys(place for _, places in forms for place in places)
    return "\n".join(text for text, _ in forms), tuple(named)


@cache
def _statement(node: ast.stmt, module: str) -> tuple[str, tuple[Place, ...]]:
    """Normal form of a statement, and the definitions of this package that it names."""
    nodes: list[ast.AST] = []
    text = _form(node, nodes)
    return text, tuple(_named(nodes, module))


def _named(nodes: list[ast.AST], module: str) -> Iterator[Place]:
    """Definitions of this package that the nodes of a statement name."""
    known = read_module(module)
    imports = dict(known.imports)
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.update(_imported(node))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            source, inside = imports.get(node.value.id, ("", ""))
            if source and not inside and node.attr in read_module(source).definitions:
                yield source, node.attr
        elif isinstance(node, ast.Name):
            if node.id in imports:
                source, inside = imports[node.id]
                if inside and inside in read_module(source).definitions:
                    yield source, inside
                elif inside and read_module(source).imports.get(inside, ("", ""))[1]:
                    yield read_module(source).imports[inside]  # handed on by a package
            elif node.id in known.definitions:
                yield module, node.id


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Place]]:
    """Names that an import binds to something of this package that computes."""
    if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
        return  # the package imports by ``from``, a test sees to that
    first, _, module = node.module.partition(".")
    if first != PACKAGE.name:
        return
    for alias in node.names:
        inner = f"{module}.{alias.name}".strip(".")
        place = (inner, "") if _exists(inner) else (module, alias.name)
        if place[0].partition(".")[0] not in OUTSIDE:
            yield alias.asname or alias.name, place


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those of branches included, those for type checkers left out."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            parts = [node.body, node.orelse, getattr(node, "finalbody", [])]
            parts += [handler.body for handler in getattr(node, "handlers", [])]
            for part in parts:
                yield from _statements(part)
        else:
            yield node


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        for part in ast.walk(target) if target is not None else ():
            if isinstance(part, ast.Name):
                yield part.id


def normal_form(node: ast.AST) -> str:
    """What a piece of source does, as text that is the same however and wherever it is written."""
    return _form(node, [])


def _form(value: object, nodes: list[ast.AST]) -> str:
    """Normal form of a part of a tree, whose nodes are added to the list."""
    if isinstance(value, ast.AST):
        nodes.append(value)
        parts = [
            f"{name}={_form(part, nodes)}"
            for name, part in _fields(value)
            if part is not None and part != []
        ]
        return f"{type(value).__name__}({','.join(parts)})"
    if isinstance(value, list):
        return f"[{','.join([_form(part, nodes) for part in value])}]"
    return repr(value)


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Fields of a node that say what it does."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield "exc", node.exc.func  # not what it says
        return
    if _is_said(node):
        return
    for name in node._fields:
        if name in UNSAID:
            continue
        value = getattr(node, name, None)
        if isinstance(value, list) and name in ("body", "orelse", "finalbody"):
            yield name, [part for part in value if not (_is_docstring(part) or _says(part))]
        else:
            yield name, value


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _says(node: ast.AST) -> bool:
    """Whether a statement is a line of a log."""
    return isinstance(node, ast.Expr) and _is_said(node.value)


def _is_said(node: ast.AST) -> bool:
    """Whether an expression writes a line of a log."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    logger = node.func.value
    named = logger.func if isinstance(logger, ast.Call) else logger
    return node.func.attr in SAID and isinstance(named, ast.Name) and named.id in LOGGERS


@cache
def _data_files(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {
        path.relative_to(PACKAGE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith(".") and path.suffix not in (".py", ".pyi", ".pyc")
    }


@cache
def _exists(module: str) -> bool:
    return bool(module) and _file(module).is_file()


@cache
def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
