"""Jobs need no network: compute nodes often have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.workflow.small_study import (
    NETWORK_LOG,
    bare_environment,
    quick,
    watched,
    without_network,
)

LOADED = "import sys; print('torch' in sys.modules, flush=True)"
ASK = "import urllib.request; urllib.request.urlopen('http://203.0.113.1', timeout=0.01)"


def test_whole_study_asks_no_other_machine(finished_study: Path) -> None:
    lines = (finished_study / NETWORK_LOG).read_text("utf-8").splitlines()
    for step in ("prior", "embed", "finetune", "sample", "features", "recognise"):
        assert any(f"pipeline_steps.{step} " in line for line in lines)
    assert [line for line in lines if not line.startswith("watched by")] == []


def test_a_question_to_another_machine_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "pipeline_steps").mkdir()
    (tmp_path / "pipeline_steps/ask.py").write_text(f"{LOADED}; {ASK}")
    command = [sys.executable, "-m", "pipeline_steps.ask", "now"]
    environment = bare_environment() | quick() | watched(tmp_path)
    loaded = [
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).stdout
        for _ in range(2)
    ]
    assert loaded == [b"False\n", b"True\n"]  # on its own, and a fork of the server's
    noted = (tmp_path / NETWORK_LOG).read_text("utf-8")
    assert noted.count("socket.connect ('203.0.113.1'") == 2


if without_network():  # pytest's header says whether

    def test_study_had_no_network() -> None:
        command = [*without_network(), sys.executable, "-c", ASK]
        errors = subprocess.run(command, capture_output=True, text=True).stderr
        assert "Network is unreachable" in errors
