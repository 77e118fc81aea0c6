"""Run a command, see `preloaded`; its exit status is the command's, 128 + n after signal n."""

import os
import signal
import subprocess
import sys

from pipeline_steps.runtime.preloaded import preloaded

with preloaded(os.environ) as variables:
    command = subprocess.Popen(sys.argv[1:], env={**os.environ, **variables})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the command, too
    signal.signal(signal.SIGTERM, lambda *_: command.terminate())
    status = command.wait()
sys.exit(status if status >= 0 else 128 - status)
