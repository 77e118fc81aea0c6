"""Being asked to stop: a step ends at its next safe point instead of in the middle of its work.

A scheduler announces the end of a job by SIGTERM (``scancel``, time limit, preemption) or by the
signal that the user chose (``sbatch --signal=USR1@120``), a terminal by SIGINT; SIGKILL follows
some time later. A step that can go on later saves its state and raises
:class:`~pipeline_steps.runtime.errors.Interrupted`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this process to stop; true once they did.

    Attributes:
        name: The first such signal's name, e.g. "SIGTERM"; None while nobody asked.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C is impatience and interrupts at once."""
        if number == signal.SIGINT and self.name == "SIGINT":
            signal.default_int_handler(number, frame)
        # Other repetitions change nothing: schedulers tell every process of a job, and launchers
        # pass on what they are told, so that one request may arrive twice.
        self.name = self.name or signal.Signals(number).name


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Take SIGTERM, SIGUSR1 and SIGINT as requests for the length of the block.

    Ask the yielded object wherever the work may end, at least every few seconds. Former handlers
    come back at the block's end. Outside the main thread, where Python takes no signals, the object
    stays false.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)
