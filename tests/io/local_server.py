"""A real HTTP server on this machine that can answer ranges, and misbehave on request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class LocalServer:
    """What is served, and how.

    Attributes:
        address: http://127.0.0.1:<port>
        files: Path to content.
        ranges: Whether parts of files are served.
        cut: How many answers still end after half of their bytes.
        cut_first: Whether every file's first answer does.
        versions: Whether answers say which version of a file they are.
        answers: Status codes for the next requests instead of the file.
        requests: (path, Range header) of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int = 0
    cut_first: bool = False
    versions: bool = True
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def local_server() -> Iterator[LocalServer]:
    state = LocalServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            content = state.files.get(self.path)
            if state.answers or content is None:
                self.send_error(state.answers.pop(0) if state.answers else 404)
                return
            version = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            start = 0
            same = self.headers.get("If-Range") in (None, "", version)
            if wanted and state.ranges and same:
                found = re.fullmatch(r"bytes=(\d+)-", wanted)
                assert found is not None
                start = int(found[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(200)
            body = content[start:]
            self.send_header("Content-Length", str(len(body)))
            if self.path.endswith("/"):
                self.send_header("Content-Type", "text/html")
            if state.versions:
                self.send_header("ETag", version)
            self.end_headers()
            if state.cut or (state.cut_first and not wanted):
                state.cut = max(state.cut - 1, 0)
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
