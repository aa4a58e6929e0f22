"""Something that answers on a Unix socket or a port as an agent or hub does, or as nothing should."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    body: bytes
    token: str | None


@dataclass
class FakeNode:
    """Answers by method and path; bytes are sent as they are, anything else as JSON."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        missing = {
            "error": {"reason": "not-found", "exit_code": 19, "message": "no such thing", "hint": "look"}
        }
        return self.answers.get((asked.method, asked.path), (404, missing))


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)


def _handler(node: FakeNode) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = node.answer(
                Asked(self.command, self.path, body, self.headers.get("Authorization"))
            )
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if data:
                self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Quiet."""

    return Handler


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(timeout=5)
        server.server_close()


@contextmanager
def on_socket(node: FakeNode, path: Path) -> Iterator[Path]:
    """Answer at a Unix socket."""
    server = _UnixServer(str(path), _handler(node))
    path.chmod(0o600)
    with _serving(server):
        yield path


@contextmanager
def on_port(node: FakeNode) -> Iterator[str]:
    """Answer at a port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(node))
    server.daemon_threads = True
    with _serving(server):
        yield f"http://127.0.0.1:{server.server_port}"
