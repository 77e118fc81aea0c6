"""Names of image sets and of the identities in them, read off the study's folder layout.

A source is `real`, `wild`, or `<base_model>/<method>/<prompts>`; its files lie under
`features/<source>/`, `aligned/<source>/` and `samples/<source>/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.naming import REFERENCES
from pipeline_steps.runtime.errors import StepError

NOT_APPLICABLE = "-"  # method and prompts of a reference set


@dataclass(frozen=True, order=True)
class Source:
    """One set of images.

    Attributes:
        base_model: base model, or the reference set's name.
        method, prompts: `-` for a reference set.
    """

    base_model: str
    method: str = NOT_APPLICABLE
    prompts: str = NOT_APPLICABLE

    @property
    def is_reference(self) -> bool:
        """True for `real` and `wild`."""
        return self.method == NOT_APPLICABLE

    @property
    def name(self) -> str:
        """`real`, `wild` or `<base_model>/<method>/<prompts>`."""
        parts = (self.base_model, self.method, self.prompts)
        return self.base_model if self.is_reference else "/".join(parts)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that name this set in every table."""
        return {"base_model": self.base_model, "method": self.method, "prompts": self.prompts}


def source_of(path: Path, root: str) -> Source:
    """The source whose file this is.

    Args:
        path: a file below `<root>/<source>/`.
        root: "features", "aligned" or "samples".

    Raises:
        StepError: the path has another shape.
    """
    folders = path.parent.parts
    if root in folders:
        below = folders[len(folders) - folders[::-1].index(root) :]
        if len(below) == 1 and below[0] in REFERENCES:
            return Source(below[0])
        if len(below) == 3:
            return Source(*below)
    raise StepError(
        f"cannot tell what {path} belongs to: expected {root}/real/…, {root}/wild/… or "
        f"{root}/<base_model>/<method>/<prompts>/…"
    )


def audited(path: Path) -> Source:
    """The variant of `audit/<base_model>/<method>/<prompts>.<rest>`.

    Raises:
        StepError: the path has another shape.
    """
    if len(path.parts) < 4 or path.parts[-4] != "audit":
        raise StepError(
            f"cannot tell what {path} is about: expected audit/<base_model>/<method>/<prompts>.…"
        )
    return Source(path.parts[-3], path.parts[-2], path.name.split(".", 1)[0])


def trained_on(path: Path) -> tuple[str, Source, int]:
    """Training set and seed of `recognition/<trained_on>/seed<k>/<file>`.

    `<trained_on>` is `real` or `<base_model>-<method>-<prompts>`.

    Raises:
        StepError: the path has another shape.
    """
    name, seed = path.parent.parent.name, re.fullmatch(r"seed(\d+)", path.parent.name)
    parts = name.rsplit("-", 2)
    if seed is None or (name not in REFERENCES and len(parts) != 3):
        raise StepError(
            f"cannot tell what {path} was trained on: expected recognition/real/seed<k>/… or "
            "recognition/<base_model>-<method>-<prompts>/seed<k>/…"
        )
    source = Source(name) if name in REFERENCES else Source(*parts)
    return name, source, int(seed[1])


def identity_of(file: str) -> str:
    """Identity of a relative file name: its first folder, or the name itself where there is none.

    Images without a folder belong to nobody in particular, so each is its own identity.
    """
    return file.split("/", 1)[0]


def identities_of(files: Sequence[str]) -> list[str]:
    """`identity_of` for each file."""
    return [identity_of(file) for file in files]
