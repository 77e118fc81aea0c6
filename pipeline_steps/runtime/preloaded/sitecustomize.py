"""Loaded by Python at its start when this folder is in PYTHONPATH: a server runs the program.

Only Snakemake and steps of the pipeline, of the server's own Python and on one thread, are handed
over, to the server that the variable FORK_SERVER names (`server.py` beside this file). This process
then stands for the other one: signals to it are passed on, the other one ends when it ends, and it
ends in the same way. Where no server answers, as on another node, the program runs here.
"""

import os
import sys


def _handed_over() -> bool:
    match sys.orig_argv[1:]:
        case ["-m", module, *_]:
            known = module.startswith("pipeline_steps.")
        case [program, *_]:
            known = os.path.basename(program) == "snakemake"
        case _:
            known = False
    same = os.environ.get("FORK_SERVER_PYTHON") == sys.prefix
    return known and same and os.environ.get("OMP_NUM_THREADS") == "1"


def _run() -> None:
    import json
    import signal
    import socket

    passed = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    ignored = [int(one) for one in passed if signal.getsignal(one) is signal.SIG_IGN]
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(os.environ["FORK_SERVER"])
    except OSError:
        return
    for one in passed.difference(ignored):
        signal.signal(one, lambda number, _: server.send(bytes([number])))
    request = {
        "words": sys.orig_argv,
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "ignored": ignored,
    }
    line = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(server, [line], [0, 1, 2])
    server.sendall(line[sent:])
    status = int(server.makefile().readline() or 1)  # nothing: the server is gone
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


if "FORK_SERVER" in os.environ and _handed_over():
    _run()
