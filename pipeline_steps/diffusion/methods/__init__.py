"""The fine-tuning methods, one module each: a module here with a ``METHOD`` is a method.

A method's name is its module's. Its results' content keys follow from its own module and from what
all methods share, so that a new method, or a change of one, trains no other again.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pipeline_steps.diffusion.objectives import Method

METHODS: dict[str, Method] = {
    module.name: import_module(f"{__name__}.{module.name}").METHOD
    for module in iter_modules(__path__)
}


def module_of(method: str) -> str:
    """A method's module within the package, as ``study.key.modules_behind`` takes it."""
    return f"diffusion.methods.{method}"
