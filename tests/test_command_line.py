from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.runtime.command_line import (
    add_paths,
    add_study,
    command_line,
    step_command_line,
)


def test_the_help_of_a_step_is_its_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        step_command_line("score", "In:  a\n     table.").parse_args(["--help"])
    told = capsys.readouterr().out
    assert "python -m pipeline_steps.score" in told
    assert "In:  a\n     table." in told
    assert "--config" in told


def test_paths_come_in_one_list_however_they_are_given() -> None:
    parser = command_line("x", None)
    add_paths(parser, "--scores", "tables")
    told = parser.parse_args(["--scores", "a", "b", "--scores", "c"])
    assert told.scores == [Path("a"), Path("b"), Path("c")]
    assert parser.parse_args([]).scores == []


def test_required_paths_are_at_least_one() -> None:
    parser = command_line("x", None)
    add_paths(parser, "--scores", "tables", required=True)
    for words in ([], ["--scores"]):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)


def test_a_study_may_have_a_default() -> None:
    parser = command_line("x", None)
    add_study(parser, default=Path("config/demo.yaml"))
    assert parser.parse_args([]).study == [Path("config/demo.yaml")]
    assert parser.parse_args(["--study", "a", "b"]).study == [Path("a"), Path("b")]
