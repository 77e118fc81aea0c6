"""Fill sizes, hashes and measured numbers into the card of the embedded weights.

In:  the folder of the weights with its README.md; what benchmarks/demo_world.py measured.
Out: README.md of that folder, in which the text between `<!-- table:NAME -->` and the next
     `<!-- /table -->` is replaced; everything else stays. Filling twice changes nothing.

Example:
    python docs/fill_card.py --measurements benchmarks/results/demo_world.json
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from fill_tables import ROOT, fill

from pipeline_steps.evidence.tables.table import Estimate, pipe_table
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import command, run_main


def run(*, measurements: Path, weights: Path = ROOT / "resources" / "demo_world") -> None:
    """Fill the card.

    Args:
        measurements: JSON file of benchmarks/demo_world.py.
        weights: Folder of the weights and their card.
    """
    tables = {"weights": weights_table(weights), "card": measurements_table(measurements)}
    document = weights / "README.md"
    write_text(document, fill(document.read_text(encoding="utf-8"), tables))


def weights_table(folder: Path) -> str:
    """Every safetensors file of a folder: how many numbers it stores, its size and its hash.

    Raises:
        StepError: there is none, or one is broken.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise StepError(f"{folder} holds no .safetensors file: train the weights first")
    rows = [
        [
            f"`{file.relative_to(folder).as_posix()}`",
            f"{stored_numbers(file):,}".replace(",", " "),
            f"{file.stat().st_size / 1e6:.2f}",
            f"`{sha256_file(file)[:16]}…`",
        ]
        for file in files
    ]
    total = sum(file.stat().st_size for file in files)
    rows.append(["all", "", f"{total / 1e6:.2f}", ""])
    return pipe_table(["File", "Numbers stored", "Size, MB", "SHA-256"], rows, texts=1)


def stored_numbers(file: Path) -> int:
    """Count of all tensors' elements, read off a safetensors file's header."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (struct.error, ValueError) as error:
        raise StepError(f"{file} is no safetensors file: {error}") from error
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def measurements_table(path: Path) -> str:
    """What benchmarks/demo_world.py measured, but for the study's own identity table.

    Raises:
        StepError: there is no such file.
    """
    try:
        parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [
                str(row["what"]).strip(),
                _estimate(row).text(),
                str(row["n"]),
                str(part["date"]),
                str(part["hardware"]),
            ]
            for name, part in parts.items()
            if name != "identity"
            for row in part["rows"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StepError(
            f"{path} is no result of benchmarks/demo_world.py ({error}): run that first"
        ) from error
    return pipe_table(["What", "Measured", "n", "Date", "On"], rows, texts=1)


def _estimate(row: Mapping[str, Any]) -> Estimate:
    limits = [] if row["low"] is None else [float(row["low"]), float(row["high"])]
    return Estimate(float(row["value"]), *limits)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
