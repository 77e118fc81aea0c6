"""Loaded by Python at its start when this folder is in PYTHONPATH: notes who asks the network.

Appends lines to the file that the variable NETWORK_LOG names: one for the process itself, and one
for each name that it looks up and each connection that it begins, to whatever machine; the forks of
a server that was started so are watched, too. Then the preloading `sitecustomize` has its turn,
except for the first watched process of each step: that one imports by itself all that it needs.
"""

import os
import runpy
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


def _is_first() -> bool:
    """Whether processes are noted, and none of this step has been so far."""
    log, step = os.environ.get("NETWORK_LOG", ""), sys.orig_argv[1:3]
    if not log or step[:1] != ["-m"]:
        return False
    if not os.path.exists(log):
        return True
    with open(log, encoding="utf-8") as lines:
        return f" {' '.join(step)} " not in lines.read()


first = _is_first()
_note("watched")
sys.addaudithook(_watch)
if not first:
    after = os.environ["PYTHONPATH"].split(os.pathsep)[1:]
    for folder in after[:1]:
        runpy.run_path(os.path.join(folder, "sitecustomize.py"))
