"""Loaded by Python at its start when this folder is in PYTHONPATH: notes who asks the network.

Appends lines to the file that the variable NETWORK_LOG names: one for the process itself, and one
for each name that it looks up and each connection that it begins, to whatever machine.
"""

import os
import socket
import sys

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
CONTACTS = ("socket.connect", "socket.sendto")


def _note(text: str) -> None:
    with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{text} by {' '.join(sys.orig_argv)!r}\n")


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in LOOKUPS:
        _note(f"{event} {arguments[0]}")
    elif event in CONTACTS and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        _note(f"{event} {arguments[1]}")


if "NETWORK_LOG" in os.environ:
    _note("watched")
    sys.addaudithook(_watch)
