"""Steps that need not load their libraries: python -m pipeline_steps.runtime.preloaded COMMAND ...

Most steps of a small study take longer to load PyTorch than to work. While a command runs in here,
one process has the libraries loaded (`server.py`), and each step that the command starts is a fork
of it (`sitecustomize.py`). No result changes. Handed over are steps of this Python on one thread of
this machine; all others run as ever, such as those on another node or in another environment.
Snakemake's benchmark files then count a step's seconds, but not its processor time and memory,
which are the fork's: it tells them in its log (`runtime.logs.tell_usage`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent


@contextmanager
def preloaded(
    environment: Mapping[str, str], before: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Variables by which Python's programs are handed over, while the server runs.

    Args:
        environment: The server's own. Where its PYTHONPATH has a `sitecustomize` already, that one
            counts, and no step is handed over unless it loads ours.
        before: Words before the server's command, and so before all that it runs.
    """
    paths = [*filter(None, [environment.get("PYTHONPATH")]), str(FOLDER)]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "FORK_SERVER_PYTHON": sys.prefix}
    with tempfile.TemporaryDirectory() as place:
        address = Path(place) / "socket"
        server = subprocess.Popen(
            [*before, sys.executable, FOLDER / "server.py", address],
            # One thread, as its forks; and no card is touched, for forks could not use it then.
            env={
                **environment,
                **variables,
                "OMP_NUM_THREADS": "1",
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's signals are for the steps alone
        )
        assert server.stdout
        if server.stdout.readline() != b"listening\n":
            raise RuntimeError("the process that loads the libraries has ended")
        try:
            yield variables | {"FORK_SERVER": str(address)}
        finally:
            server.communicate()  # it ends with its input
