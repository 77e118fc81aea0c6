"""Runs programs in forks of a process that has loaded their libraries, which takes longest in most.

    python server.py SOCKET

Whoever starts it holds its standard input open, and reads a line from it when it listens. None of
the project's own modules is loaded before a fork: they may be changed while the server runs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "torch._dynamo", "torchvision.transforms.v2", "safetensors.torch"),
    *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.schedulers", "peft", "transformers.models.clip.modeling_clip"),
    *("transformers.models.clip.tokenization_clip", "facenet_pytorch"),
    *("pandas", "pyarrow.parquet", "pyarrow.dataset", "scipy.ndimage", "scipy.special"),
    *("scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg", "cv2", "PIL.Image"),
    *("pydantic", "tyro", "jinja2", "yaml", "tqdm", "snakemake.cli", "snakemake.workflow"),
)


def serve(path: str) -> dict[str, Any] | None:
    """Listen until standard input ends; returns in each fork, with what it shall run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return fork_for(caller)
        caller.close()


def fork_for(caller: socket.socket) -> dict[str, Any]:
    """Fork once more; this process passes signals to the fork, and its end to the caller."""
    line, files, _, _ = socket.recv_fds(caller, 1 << 16, 3)
    while not line.endswith(b"\n"):
        line += caller.recv(1 << 16)
    child = os.fork()
    if child == 0:
        caller.close()
        return {**json.loads(line), "files": files}
    for file in (0, 1, 2, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([ended, caller.fileno()], [], [])
        if ended in ready:
            break
        for number in caller.recv(16) or [signal.SIGKILL]:
            os.kill(child, number)
            if number == signal.SIGKILL:  # the caller is gone
                os._exit(0)
    _, status = os.waitpid(child, 0)
    caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Run what was asked for, as a new Python would."""
    for target, file in enumerate(request["files"]):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    tempfile.tempdir = None
    sys.orig_argv = request["words"]
    match request["words"][1:]:
        case ["-m", module, *arguments]:
            sys.path[0] = request["folder"]
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [program, *arguments]:
            sys.path[0] = os.path.dirname(program)
            sys.argv = [program, *arguments]
            runpy.run_path(program, run_name="__main__")


def end(status: int) -> NoReturn:
    """End as Python does, but touch no memory: pages would be copied, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    assert not any(name.startswith("pipeline_steps") for name in sys.modules)
    gc.collect()
    gc.freeze()
    asked = serve(sys.argv[1])
    status: int | None = 0
    try:
        if asked is not None:
            become(asked)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int | None) else 1
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except Exception:
        traceback.print_exc()
        status = 1
    end(status or 0)
