"""The one error a step shows to its user, and the entry point that prints it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class StepError(Exception):
    """A step cannot go on; the message says what is wrong, where, and what to do about it."""


class Interrupted(Exception):
    """A step was asked to stop and saved what it had; run again, it goes on from there."""


def run_main(main: Callable[[], int]) -> int:
    """Run a step's ``main``; turn a :class:`StepError` into one line and exit status 2.

    :class:`Interrupted` becomes one line and status 75 (EX_TEMPFAIL of sysexits.h: try again). Any
    other exception keeps its traceback: it is a defect, not a user's mistake.
    """
    try:
        return main()
    except StepError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        print(f"stopped: {' '.join(str(interruption).split())}", file=sys.stderr)
        return os.EX_TEMPFAIL
