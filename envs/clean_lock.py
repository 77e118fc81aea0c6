"""Drop the platform markers that every line of the lock shares; keep those that choose a version.

The lock is made for one platform, so ``sys_platform`` and ``platform_machine`` say nothing there,
and neither does the upper bound of Python, which pyproject.toml states.

Usage: python envs/clean_lock.py requirements.lock
"""

from __future__ import annotations

import sys
from pathlib import Path

SHARED = {
    "python_full_version < '3.14'",
    "platform_machine == 'x86_64'",
    "sys_platform == 'linux'",
    "platform_python_implementation != 'PyPy'",
}
HEADER = "# Made by `make lock`. Linux x86_64, Python 3.11 to 3.13.\n"


def clean(line: str) -> str:
    """One requirement without the shared conditions of its marker."""
    requirement, _, marker = line.partition(" ; ")
    kept = [part for part in marker.split(" and ") if part and part not in SHARED]
    return f"{requirement} ; {' and '.join(kept)}" if kept else requirement


def main() -> None:
    """Rewrite the lock named on the command line."""
    path = Path(sys.argv[1])
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    path.write_text(HEADER + "".join(f"{clean(line)}\n" for line in lines))


if __name__ == "__main__":
    main()
