from __future__ import annotations

import pytest

from pipeline_steps.files.errors import Interrupted, StepError, run_main


def test_a_step_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise StepError("ID_7 has no usable image in\n  data/tfd: add some")

    assert run_main(main) == 2
    assert capsys.readouterr().err == "error: ID_7 has no usable image in data/tfd: add some\n"


def test_an_interruption_is_one_line_and_the_status_that_means_try_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        raise Interrupted("saved at step 7")

    assert run_main(main) == 75
    assert capsys.readouterr().err == "stopped: saved at step 7\n"


def test_success_passes_through() -> None:
    assert run_main(lambda: 0) == 0


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)
