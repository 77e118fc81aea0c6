"""What a study calls its sets of images and the columns of its tables, and the order of names."""

from __future__ import annotations

import re
from collections.abc import Iterable

UNTUNED = "untuned"  # the method of the base model as it is; sampled, never trained
REAL = "real"  # the consented photographs
WILD = "wild"  # the in-the-wild reference
REFERENCES = (REAL, WILD)
NOBODY = "nobody: does not exist"  # consent of people who are made up
EXTERNAL = "external"  # stands before the names of sets that others have made
REASONS = "reasons"  # the column that says why numbers of a row are missing; else empty
VARIANT = ("base_model", "method", "prompts")  # columns that name a set of generated images
# Columns that tell how an image was generated.
GENERATED_BY = ("prompt", "negative_prompt", "seed", "steps", "guidance", "scheduler")
# Columns of a recogniser's accuracies, a row per benchmark.
VERIFICATION_COLUMNS = (
    *("benchmark", "role", "accuracy", "accuracy_sd", "n_pairs", "low", "high"),
    REASONS,
)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ID_2 before ID_10."""
    parts = re.split(r"(\d+)", text)
    return tuple(
        (0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part
    )


def identity_of(file: str) -> str:
    """Identity of a relative file name: its first folder, or the name itself where there is none.

    Images without a folder belong to nobody in particular, so each is its own identity.
    """
    return file.split("/", 1)[0]


def identities_of(files: Iterable[str]) -> list[str]:
    """:func:`identity_of` for each file."""
    return [identity_of(file) for file in files]
