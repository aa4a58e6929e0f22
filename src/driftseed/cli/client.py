"""Asks a running agent or hub, over its Unix socket or over http(s): one request, one answer, blocking.

A command line has nothing else to do meanwhile, so this is ``http.client`` and not asyncio.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from driftseed.core.errors import AgentUnreachable, DriftseedError, Misuse, UnsafePermissions

TIMEOUT_S: Final = 10.0
"""Seconds for connecting, and for each wait for more of the answer."""
SEND_TIMEOUT_S: Final = 120.0
"""Seconds for each wait while a file is sent: the other side hashes gigabytes and waits for its disk."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of an answer: a fleet of ten thousand devices needs about 20 MB."""
TOKEN_VARIABLE: Final = "DRIFTSEED_TOKEN"  # noqa: S105 - the name of a variable, not a token
AGENT_SOCKET: Final = "agent.sock"
HUB_SOCKET: Final = "hub.sock"


class RemoteError(DriftseedError):
    """An error that the agent or hub reported, with the code and reason that it has there."""

    def __init__(self, message: str, *, hint: str, reason: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        # The class has placeholders; what counts is what the other side said.
        self.reason = reason  # type: ignore[misc]  # a ClassVar of the base, shadowed on purpose
        self.exit_code = exit_code  # type: ignore[misc]  # as above


class Readable(Protocol):
    """An open file, or what reads like one."""

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to one agent or hub.

    Args:
        where: path of a Unix socket, or the beginning of a URL without a slash at its end.
        who: what is asked, for messages ("agent", "hub").
        token: bearer token; sent over http(s) only.
        timeout_s: seconds for connecting and for each wait for more.
    """

    where: Path | str
    who: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def get(self, path: str) -> dict[str, Any]:
        """``GET`` a path such as ``/v1/status``. Errors as for ``request``."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Make one request.

        Args:
            method: ``GET``, ``POST``, ``PATCH`` or ``DELETE``.
            path: as in docs/protocol.md, beginning with ``/v1/``.
            body: sent as JSON; None sends nothing.

        Raises:
            AgentUnreachable: nobody answers, or not in the form of this API.
            RemoteError: it answered with an error.
        """
        if body is None:
            return self._exchange(method, path, None, {}, self.timeout_s)
        headers = {"Content-Type": "application/json"}
        return self._exchange(method, path, json.dumps(body).encode(), headers, self.timeout_s)

    def send_file(self, path: str, data: bytes | Path) -> dict[str, Any]:
        """``PUT`` raw bytes, or those of a file, which is not read into memory. Errors as for ``request``."""
        if isinstance(data, bytes):
            headers = {"Content-Type": "application/octet-stream"}
            return self._exchange("PUT", path, data, headers, SEND_TIMEOUT_S)
        with data.open("rb") as file:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(os.fstat(file.fileno()).st_size),
            }
            return self._exchange("PUT", path, file, headers, SEND_TIMEOUT_S)

    def send_stream(self, path: str, body: Readable, length: int) -> dict[str, Any]:
        """``PUT`` as many bytes of an open file. Errors as for ``request``, and those of the file itself."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        return self._exchange("PUT", path, body, headers, SEND_TIMEOUT_S)

    def _exchange(
        self, method: str, path: str, body: bytes | Readable | None, headers: dict[str, str], timeout_s: float
    ) -> dict[str, Any]:
        connection, prefix = self._connect(timeout_s)
        headers["Accept"] = "application/json"
        if self.token is not None and not isinstance(self.where, Path):
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            # Who refuses a body may answer before it has read it, and then close: the answer says why.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, prefix + path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES_MAX + 1)
        except TimeoutError:
            raise AgentUnreachable(
                f"the {self.who} at {self.where} does not answer within {timeout_s:g} s",
                hint=f"look at the {self.who}'s log",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        return self._decode(response.status, answer)

    def _connect(self, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
        if isinstance(self.where, Path):
            return _UnixConnection(self.where, timeout_s), ""
        parts = urlsplit(self.where)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout_s), f"{parts.path.rstrip('/')}/api"

    def _unreachable(self, error: Exception) -> AgentUnreachable:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError) and isinstance(self.where, Path):
            command = "agent run --data" if self.who == "agent" else "hub run --data"
            return AgentUnreachable(
                f"no {self.who} is running: nobody listens on {self.where}",
                hint=f"start it with 'driftseed {command} DIR', or name another with --data or --socket"
                if self.who == "agent"
                else f"start it with 'driftseed {command} DIR ...', or name another with --hub",
            )
        if isinstance(error, PermissionError):
            return AgentUnreachable(
                f"this user may not speak to the {self.who} at {self.where}",
                hint=f"run the command as the user that the {self.who} runs as",
            )
        return AgentUnreachable(
            f"the {self.who} at {self.where} cannot be asked: {str(error) or type(error).__name__}",
            hint=f"is it running, and is this the address of its API? Look at the {self.who}'s log",
        )

    def _decode(self, status: int, answer: bytes) -> dict[str, Any]:
        try:
            value = json.loads(answer) if len(answer) <= ANSWER_BYTES_MAX else None
        except (ValueError, RecursionError):
            value = None
        if status == 401:
            raise AgentUnreachable(
                f"the {self.who} at {self.where} wants a token",
                hint=f"pass --token or set {TOKEN_VARIABLE}; the hub keeps it in the file api-token of its data directory",
            )
        if not isinstance(value, dict):
            raise AgentUnreachable(
                f"what answers at {self.where} (HTTP {status}) is not a driftseed {self.who}",
                hint="check the address",
            )
        if status < 400:
            return value
        problem = value.get("error")
        problem = problem if isinstance(problem, dict) else {}
        code = problem.get("exit_code")
        raise RemoteError(
            str(problem.get("message") or f"the {self.who} answers with HTTP status {status}"),
            hint=str(problem.get("hint") or ""),
            reason=str(problem.get("reason") or "error"),
            exit_code=code if isinstance(code, int) and 0 < code < 126 else 1,
        )


class _UnixConnection(http.client.HTTPConnection):
    """``http.client`` over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


def agent_client(data: Path, socket_path: Path | None) -> Client:
    """The agent whose data directory, or whose socket, this is."""
    return Client(socket_path or data / AGENT_SOCKET, "agent")


def hub_client(where: str, token: str | None) -> Client:
    """A hub, by its data directory, its socket, or the URL of its API.

    Args:
        where: what the person wrote.
        token: as given; else ``DRIFTSEED_TOKEN`` is used.

    Raises:
        Misuse: the URL cannot be used.
        UnsafePermissions: others may write to the socket, so whoever answers there need not be the hub.
    """
    if where.startswith(("http://", "https://")):
        return Client(_checked_url(where), "hub", token or os.environ.get(TOKEN_VARIABLE) or None)
    path = Path(where)
    if path.is_dir():
        path /= HUB_SOCKET
    if path.is_socket() and path.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        raise UnsafePermissions(f"others may write to {path}", hint=f"chmod 600 {path}")
    return Client(path, "hub")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable():
        raise Misuse(
            f"not the URL of a hub: {url[:160]!r}", hint="it looks like https://hub.example.org:7700"
        )
    return url.rstrip("/")
