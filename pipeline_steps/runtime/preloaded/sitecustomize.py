"""Loaded by Python at its start when this folder is in PYTHONPATH.

It notes who asks the network in the file that the variable NETWORK_LOG names, if any: a line for
each process, and one for each name that it looks up and each connection that it begins, to whatever
machine.

And it lets a server run the program, where there is the variable FORK_SERVER: Snakemake and steps
of the pipeline on one thread, no others, are handed over to the server of that name (`server.py`
beside this file). This process then stands for the other one: signals to it are passed on, the
other one ends when it ends, and it ends in the same way. Where the network is watched, the first
process of each step is not handed over: it has to import by itself all that it needs.
"""

import os
import socket
import sys

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
CONTACTS = ("socket.connect", "socket.sendto")


def _note(text: str) -> None:
    if "NETWORK_LOG" in os.environ:
        with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{text} by {' '.join(sys.orig_argv)!r}\n")


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in LOOKUPS:
        _note(f"{event} {arguments[0]}")
    elif event in CONTACTS and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        _note(f"{event} {arguments[1]}")


def _is_first(module: str) -> bool:
    """Whether the network is watched, and no process of this module has been so far."""
    log = os.environ.get("NETWORK_LOG", "")
    if not os.path.exists(log):
        return bool(log)
    with open(log, encoding="utf-8") as lines:
        return f" -m {module} " not in lines.read()


def _handed_over() -> bool:
    match sys.orig_argv[1:]:
        case ["-m", module, *_]:
            known = module.startswith("pipeline_steps.") and not _is_first(module)
        case [program, *_]:
            known = os.path.basename(program) == "snakemake"
        case _:
            known = False
    same = os.environ.get("FORK_SERVER_PYTHON") == sys.prefix
    return known and same and os.environ.get("OMP_NUM_THREADS") == "1"


def _run() -> None:
    import json
    import signal

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


handed_over = "FORK_SERVER" in os.environ and _handed_over()
_note("watched")
sys.addaudithook(_watch)  # of a server's forks, too
if handed_over:
    _run()
