from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import ExitStatus, command
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.recognition import VerifySettings

if TYPE_CHECKING:
    from nowhere import Faces  # type: ignore[import-not-found]

CALLS: list[tuple[object, ...]] = []


def step(
    frozen: Frozen[VerifySettings],
    *,
    models: Sequence[Path],
    device: str,
    at_once: int | None = None,
    compiled: Literal["auto", "off"] = "auto",
    faces: Faces | None = None,
) -> None:
    """Try it.

    Args:
        frozen: The step's configuration.
        models: What is tried, in this order.
        device: "cpu" or "cuda".
        at_once: Most models at once.
        compiled: Changes speed only.
        faces: For tests.
    """
    CALLS.append((frozen, list(models), device, at_once, compiled, faces))


def status(code: int) -> ExitStatus:
    """Says what it is told."""
    return ExitStatus(code)


main = command(step, hidden=["faces"])


def write_config(path: Path, **settings: object) -> Path:
    frozen = {"study": "s", "step": "verify", "seed": 1, "settings": settings}
    path.write_text(json.dumps({**frozen, "weights": {}, "variant": {}}))
    return path


def test_a_signature_is_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSENTED_FACES_DEVICE", "cpu")
    config = write_config(tmp_path / "c.json", folds=5)
    assert main(["--config", str(config), "--models", "a", "b", "--at-once", "3"]) == 0
    frozen, *others = CALLS.pop()
    assert isinstance(frozen, Frozen) and frozen.settings.folds == 5
    assert others == [[Path("a"), Path("b")], "cpu", 3, "auto", None]


def test_help_tells_each_parameter_but_hidden_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert "What is tried, in this order." in told and "{auto,off}" in told
    assert "--faces" not in told and "--device" not in told


@pytest.mark.parametrize(
    "words", [[], ["--models", "a"], ["--config", "x", "--models", "a", "--compiled", "maybe"]]
)
def test_what_the_signature_does_not_take_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert not CALLS


def test_unfit_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.json", folds="many")
    with pytest.raises(StepError, match="folds"):
        main(["--config", str(config), "--models", "a"])
    assert not CALLS


def test_an_exit_status_is_returned() -> None:
    assert command(status)(["--code", "3"]) == 3
