"""What the command lines of all steps share."""

from __future__ import annotations

import argparse
from pathlib import Path


def command_line(module: str, documentation: str | None) -> argparse.ArgumentParser:
    """The parser of a module of this package; its help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline_steps.{module}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def step_command_line(step: str, documentation: str | None) -> argparse.ArgumentParser:
    """The same for a step of the workflow, which reads one frozen configuration."""
    parser = command_line(step, documentation)
    parser.add_argument("--config", type=Path, required=True, help="frozen configuration (JSON)")
    return parser


def add_study(
    parser: argparse.ArgumentParser, *, required: bool = False, default: Path | None = None
) -> None:
    """Let ``--study`` take a study's configuration as the workflow does: one file or several."""
    text = "study configuration (YAML); of several the later ones win, key by key"
    parser.add_argument(
        "--study",
        type=Path,
        nargs="+",
        required=required,
        default=None if default is None else [default],
        metavar="FILE",
        help=text if default is None else f"{text}; default {default}",
    )


def add_paths(
    parser: argparse.ArgumentParser,
    flag: str,
    description: str,
    *,
    required: bool = False,
    metavar: str = "FILE",
) -> None:
    """Let a flag take any number of paths, and be given more than once.

    Args:
        parser: gets the flag; its value is a list, empty where the flag is absent.
        flag: with its dashes.
        description: for the help.
        required: at least one path.
        metavar: what one path is.
    """
    parser.add_argument(
        flag,
        type=Path,
        nargs="+" if required else "*",
        action="extend",
        default=None if required else [],
        required=required,
        metavar=metavar,
        help=description,
    )
