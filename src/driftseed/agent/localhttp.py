"""A small HTTP/1.1 server on a Unix socket: h11 parses, asyncio carries, this module sets the limits.

Who may connect is decided by the file system: the socket has mode 0600 from the moment it has a name.
A request is hostile all the same (a script that runs wild, a browser's extension that found the socket):
head, body, time and number of connections are bounded by ``core.limits``; what is malformed is answered,
counted and forgotten. Bodies are read only as a handler asks for them, so that gigabytes can pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import h11

from driftseed.agent.router import Request, Response, Router, request_path
from driftseed.core import limits
from driftseed.core.errors import DriftseedError, RequestRefused
from driftseed.node.unixsocket import bind_socket, remove_socket

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * limits.KIB
_LINGER_S: Final = 1.0
"""Seconds for which a client that still sends is listened to after its answer, so that it can read that."""
_GRACE_S: Final = 1.0
"""Seconds that requests under way get to end when the server closes."""


class LocalServer:
    """Serves a router on a Unix socket.

    Args:
        path: of the socket; its directory must exist.
        router: what leads where.
        dropped: told the reason of every request that was refused before a handler saw it, or whose body
            broke: ``api-malformed``, ``api-too-large``, ``api-timeout``, ``api-connections``.
        request_timeout_s: seconds in which a request must have arrived; streamed bodies must not pause
            for longer.
        connections_max: connections at once; one more is answered with 503 and closed.
    """

    def __init__(
        self,
        path: Path,
        router: Router,
        *,
        dropped: Callable[[str], None],
        request_timeout_s: float = limits.API_REQUEST_TIMEOUT_S,
        connections_max: int = limits.API_CONNECTIONS_MAX,
    ) -> None:
        self.path = path
        self.router = router
        self.dropped = dropped
        self.request_timeout_s = request_timeout_s
        self._connections_max = connections_max
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None
        self._inode = -1
        self._closing = False

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def start(self) -> None:
        """Begin to listen. Raises AlreadyRunning or DeviceError, see ``bind_socket``."""
        listener = bind_socket(self.path)
        self._inode = self.path.lstat().st_ino
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_READ_BYTES)

    async def close(self) -> None:
        """Stop listening, let requests under way end for a moment, close everything, remove the socket."""
        if self._server is None:
            return
        self._closing = True
        server, self._server = self._server, None
        server.close()
        remove_socket(self.path, self._inode)
        for task, connection in self._connections.items():
            if not connection.busy:
                task.cancel()
        tasks = list(self._connections)
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=_GRACE_S)
            for task in slow:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def keeps_alive(self) -> bool:
        """Whether a connection may go on to another request."""
        return not self._closing

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.close()
            return
        if len(self._connections) >= self._connections_max:
            self.dropped("api-connections")
            error = RequestRefused(
                f"there are {self._connections_max} connections already",
                status=503,
                hint="close some, or try again",
            )
            # Small enough for the socket's buffer: nothing to wait for, so nothing to own.
            writer.write(_encode(h11.Connection(h11.SERVER), Response.of_error(error), b"", close=True))
            writer.close()
            return
        connection = _Connection(self, reader, writer)
        task = asyncio.create_task(connection.serve(), name="local-api-connection")
        self._connections[task] = connection
        task.add_done_callback(self._disconnected)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection of the local API failed", exc_info=error)


class _Connection:
    """One client: requests one after the other."""

    def __init__(
        self, server: LocalServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.API_HEAD_BYTES_MAX)
        self._received = 0
        self._deadline = 0.0
        self._method = b""
        self.busy = False

    async def serve(self) -> None:
        """Until the client or the server ends it. Only what is a fault of ours is raised."""
        try:
            while await self._exchange() and self._server.keeps_alive():
                self._http.start_next_cycle()
        except (OSError, TimeoutError) as error:
            _log.debug("a client of the local API went away: %s", error)
        finally:
            self._writer.close()
            try:
                async with asyncio.timeout(_LINGER_S):
                    await self._writer.wait_closed()
            except (OSError, TimeoutError):
                self._writer.transport.abort()

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        self.busy = False
        try:
            head = await self._read_head()
            if head is None:
                return False
            self.busy = True
            response = await self._respond(head)
        except RequestRefused as error:
            response = Response.of_error(error)
            head = None
        self._finish_reading()
        again = head is not None and self._http.their_state is h11.DONE
        await self._send(response, self._method, close=not again)
        if not again:
            await self._linger()
        return again and self._http.our_state is h11.DONE

    async def _read_head(self) -> h11.Request | None:
        """The next request's head; None when the client has ended, or has asked nothing for long."""
        before = len(self._http.trailing_data[0])
        self._received = 0
        self._method = b""
        self._deadline = self._now() + self._server.request_timeout_s
        while True:
            event = self._next_event()
            if isinstance(event, h11.Request):
                # Also of a head that is refused: the answer to HEAD has no body, whatever it says.
                self._method = event.method
                if not event.http_version.startswith(b"1."):
                    raise self._refuse("api-malformed", "this is not HTTP/1.1", status=505)
                if before + self._received - len(self._http.trailing_data[0]) > limits.API_HEAD_BYTES_MAX:
                    raise self._refuse("api-too-large", "the request's head is too large", status=431)
                return event
            if isinstance(event, h11.ConnectionClosed):
                return None
            quiet = before + self._received == 0
            try:
                await self._receive(self._deadline)
            except TimeoutError:
                if quiet:
                    return None
                raise self._refuse("api-timeout", "the request did not arrive in time", status=408) from None
            if quiet:
                self._deadline = self._now() + self._server.request_timeout_s

    async def _respond(self, head: h11.Request) -> Response:
        try:
            path = request_path(head.target.decode("ascii"))
            handler, params = self._server.router.resolve(head.method.decode("ascii"), path)
            request = Request(
                method=head.method.decode("ascii"),
                path=path,
                headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
                body=_Body(self, head),
                params=params,
            )
            return await handler(request)
        except DriftseedError as error:
            return Response.of_error(error)
        except Exception:  # noqa: BLE001 - here a fault of ours meets a client, who gets an answer but no traceback
            _log.exception("the local API failed at %r", head.target[:200])
            return Response.internal_error()

    async def next_part(self, *, within_request_time: bool) -> bytes:
        """The next bytes of the body; none at its end. Raises RequestRefused."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            deadline = self._deadline
            if not within_request_time:
                deadline = self._now() + self._server.request_timeout_s
            try:
                await self._receive(deadline)
            except TimeoutError:
                raise self._refuse("api-timeout", "the body did not arrive in time", status=408) from None
            except OSError as error:
                raise self._refuse("api-malformed", f"the body broke off: {error}", status=400) from None

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            kind = "api-too-large" if status == 431 else "api-malformed"
            raise self._refuse(kind, f"not HTTP: {error}", status=status) from None

    async def _receive(self, deadline: float) -> None:
        async with asyncio.timeout_at(deadline):
            data = await self._reader.read(_READ_BYTES)
        self._received += len(data)
        self._http.receive_data(data)

    def _refuse(self, kind: str, message: str, *, status: int) -> RequestRefused:
        self._server.dropped(kind)
        return RequestRefused(message, status=status)

    def _finish_reading(self) -> None:
        """Take the end of a body that has arrived already, so that the connection can be used again."""
        if self._http.their_state is h11.SEND_BODY:
            with contextlib.suppress(h11.RemoteProtocolError):
                while isinstance(self._http.next_event(), h11.Data):
                    pass

    async def _send(self, response: Response, method: bytes, *, close: bool) -> None:
        await self._write(_encode(self._http, response, method, close=close))

    async def _write(self, data: bytes | None) -> None:
        self._writer.write(data or b"")
        async with asyncio.timeout(limits.WRITE_TIMEOUT_S):
            await self._writer.drain()

    async def _linger(self) -> None:
        """Read on for a moment: closing on unread bytes would reset the connection under the answer."""
        self._writer.write_eof()
        try:
            async with asyncio.timeout(_LINGER_S):
                while await self._reader.read(_READ_BYTES):
                    pass
        except TimeoutError:
            _log.debug("a client of the local API sent on after its answer")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Body:
    def __init__(self, connection: _Connection, head: h11.Request) -> None:
        self._connection = connection
        self._over = False
        headers = dict(head.headers)
        # Chunked framing overrides a length (RFC 9112, section 6.3), which then says nothing.
        chunked = b"transfer-encoding" in headers
        self.length = None if chunked else int(headers.get(b"content-length", b"0"))

    async def next(self, *, within_request_time: bool) -> bytes:
        if self._over:
            return b""
        part = await self._connection.next_part(within_request_time=within_request_time)
        self._over = not part
        return part


def _encode(http: h11.Connection, response: Response, method: bytes, *, close: bool) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        **response.headers,
    }
    if close:
        headers["Connection"] = "close"
    parts = [http.send(h11.Response(status_code=response.status, headers=list(headers.items())))]
    if method != b"HEAD":
        parts.append(http.send(h11.Data(data=response.body)))
    parts.append(http.send(h11.EndOfMessage()))
    return b"".join(part or b"" for part in parts)
