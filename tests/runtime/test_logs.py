from __future__ import annotations

import re

import pytest

from pipeline_steps.runtime.logs import get_logger, progress


def test_one_line_per_event_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("align").warning("no face in %s", "ID_1/3.png")
    get_logger("embed").info("done")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING align no face in ID_1/3.png", first
    )
    assert second.endswith(" INFO embed done")


def test_progress_yields_everything_and_writes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress(range(5), description="detect", unit="image")) == [0, 1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "detect" in captured.err
    assert "5/5" in captured.err
