"""The tests of this folder need chromium, as Debian packages it."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium")

# Not collected elsewhere, and pytest's header says so.
collect_ignore_glob = [] if CHROMIUM else ["test_*.py"]


def pytest_report_header() -> str:
    """A line at the top of pytest's output."""
    if CHROMIUM:
        return f"tests/browser: with {CHROMIUM}"
    return "tests/browser: left out, needs chromium (apt-get install chromium)"
