"""The tests of this folder need a CUDA device."""

from __future__ import annotations

import torch

# Not collected elsewhere, and pytest's header says so.
collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


def pytest_report_header() -> str:
    """A line at the top of pytest's output."""
    if torch.cuda.is_available():
        return f"tests/gpu: on {torch.cuda.get_device_name()}"
    return "tests/gpu: left out, needs a CUDA device"
