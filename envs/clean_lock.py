"""Tidy the lock, and write what conda needs to install it.

The lock is made for one platform, so the markers ``sys_platform`` and ``platform_machine`` say
nothing there, and neither does the upper bound of Python, which pyproject.toml states. Markers that
choose between versions stay.

conda cannot install without dependencies, which the lock needs (some packages' bounds are too
tight, see overrides.txt); so a script does it after conda has made the environment.

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
SCRIPT = """\
#!/usr/bin/env bash
{header}set -euo pipefail
python -m pip install --quiet --no-deps --requirement /dev/stdin <<'LOCK'
{lock}LOCK
"""


def clean(line: str) -> str:
    """One requirement without the shared conditions of its marker."""
    requirement, _, marker = line.partition(" ; ")
    parts = marker.replace('"', "'").split(" and ")
    kept = [part for part in parts if part and part not in SHARED]
    return f"{requirement} ; {' and '.join(kept)}" if kept else requirement


def main() -> None:
    """Rewrite the lock named on the command line, and the script beside this one."""
    path = Path(sys.argv[1])
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    lock = "".join(f"{clean(line)}\n" for line in lines)
    path.write_text(HEADER + lock)
    script = Path(__file__).with_name("environment.post-deploy.sh")
    script.write_text(SCRIPT.format(header=HEADER, lock=lock))


if __name__ == "__main__":
    main()
