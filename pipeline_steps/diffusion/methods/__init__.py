"""The methods, one module each: a module here with a ``METHOD`` is a method.

A method's name is its module's. What a key says of the code follows from its own module and from
what all methods share, so that a new method, or a change of one, trains no other again.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pipeline_steps.diffusion.methods.family import Method

_MODULES = {
    module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)
}
METHODS: dict[str, Method] = {
    name: module.METHOD for name, module in _MODULES.items() if hasattr(module, "METHOD")
}


def module_of(method: str) -> str:
    """A method's module below the package, as ``study.code`` takes it."""
    return f"diffusion.methods.{method}"
