"""Asks a daemon over its Unix socket: one request, one answer, blocking; called in worker threads."""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from driftseed.core.errors import AgentUnreachable

TIMEOUT_S: Final = 120.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


@dataclass(frozen=True, slots=True)
class SocketApi:
    """The API of one daemon.

    Args:
        path: its socket.
    """

    path: Path

    def get(self, path: str) -> dict[str, Any]:
        """``GET``. Raises AgentUnreachable."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request with a JSON body, or none. Raises AgentUnreachable."""
        return self._exchange(method, path, None if body is None else json.dumps(body).encode())

    def send_file(self, path: str, data: bytes | Path) -> dict[str, Any]:
        """``PUT`` bytes, or those of a file. Raises AgentUnreachable."""
        if isinstance(data, bytes):
            return self._exchange("PUT", path, data)
        with data.open("rb") as file:
            return self._exchange("PUT", path, file, {"Content-Length": str(data.stat().st_size)})

    def _exchange(
        self, method: str, path: str, body: bytes | BinaryIO | None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        connection = _Connection(self.path)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise AgentUnreachable(f"{self.path}: {error}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise AgentUnreachable(f"{method} {path}: {answer.status} {data[:300].decode(errors='replace')}")
        parsed: dict[str, Any] = json.loads(data)
        return parsed
