"""The one error a step shows to its user, and the entry point that prints it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class StepError(Exception):
    """A step cannot go on; the message says what is wrong, where, and what to do about it."""


def run_main(main: Callable[[], int]) -> int:
    """Run a step's ``main`` and turn a :class:`StepError` into one line and exit status 2.

    Any other exception keeps its traceback: it is a defect, not a user's mistake.
    """
    try:
        return main()
    except StepError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return 2
