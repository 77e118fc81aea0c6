"""A set of images: a variant, a reference set, or a set that others have made."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from pipeline_steps.naming import EXTERNAL

NOT_APPLICABLE = "-"  # method and prompts of a reference set


@dataclass(frozen=True, order=True)
class Source:
    """One set of images.

    Attributes:
        base_model: Base model, the reference set's name, or ``external``.
        method: ``-`` for a reference set; an external set's name.
        prompts: ``-`` for both.
    """

    base_model: str
    method: str = NOT_APPLICABLE
    prompts: str = NOT_APPLICABLE

    @classmethod
    def named(cls, name: str) -> Source:
        """The set of a name, see :attr:`name`."""
        return cls(*name.split("/"))

    @property
    def is_reference(self) -> bool:
        """True for ``real`` and ``wild``."""
        return self.method == NOT_APPLICABLE

    @property
    def is_external(self) -> bool:
        """True for a set that others have made."""
        return self.base_model == EXTERNAL

    @property
    def name(self) -> str:
        """``real``, ``wild``, ``<base model>/<method>/<prompts>`` or ``external/<name>``."""
        return "/".join(part for part in astuple(self) if part != NOT_APPLICABLE)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that name this set in every table."""
        return {"base_model": self.base_model, "method": self.method, "prompts": self.prompts}
