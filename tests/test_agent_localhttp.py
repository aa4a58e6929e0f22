"""The local API's server: who may connect, what a hostile client can do, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from driftseed.agent.localhttp import LocalServer
from driftseed.agent.router import Request, Response, Router, decode_path
from driftseed.core import limits
from driftseed.core.errors import (
    AlreadyRunning,
    Conflict,
    ContentMismatch,
    DeviceError,
    DiskFull,
    DriftseedError,
    MetadataReplayed,
    Misuse,
    NotFound,
    PeerUnreachable,
    RequestRefused,
)
from driftseed.node.unixsocket import SOCKET_PATH_BYTES_MAX, bind_socket
from support_http import WAIT_S, RawClient, ask

ERRORS: dict[str, DriftseedError] = {
    "misuse": Misuse("bad input", hint="mend it"),
    "not-found": NotFound("no such thing"),
    "conflict": Conflict("not now"),
    "content-mismatch": ContentMismatch("wrong bytes"),
    "metadata-replayed": MetadataReplayed("old"),
    "peer-unreachable": PeerUnreachable("nobody there"),
    "disk-full": DiskFull("full", hint="free some space"),
}
STREAM_MAX = 8 * limits.MIB


class Served:
    """A server with handlers that show what arrived."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.drops: Counter[str] = Counter()
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.router = Router()
        self.router.add("GET", "/hello", self.hello)
        self.router.add("POST", "/echo", self.echo)
        self.router.add("POST", "/json", self.json)
        self.router.add("POST", "/ignore", self.hello)
        self.router.add("PUT", "/stream/{name...}", self.stream)
        self.router.add("GET", "/item/{item}/part", self.item)
        self.router.add("GET", "/error/{reason}", self.error)
        self.router.add("GET", "/bug", self.bug)
        self.router.add("GET", "/wait", self.wait)
        self.server = self.make()

    def make(self, timeout_s: float = limits.API_REQUEST_TIMEOUT_S, connections: int = 32) -> LocalServer:
        return LocalServer(
            self.path,
            self.router,
            dropped=self.count,
            request_timeout_s=timeout_s,
            connections_max=connections,
        )

    def count(self, reason: str) -> None:
        self.drops[reason] += 1

    async def hello(self, request: Request) -> Response:
        return Response.json({"hello": "world"})

    async def echo(self, request: Request) -> Response:
        return Response(200, await request.read(), "application/octet-stream")

    async def json(self, request: Request) -> Response:
        return Response.json(await request.json_object())

    async def stream(self, request: Request) -> Response:
        digest, parts = hashlib.sha256(), 0
        async for part in request.stream(STREAM_MAX):
            digest.update(part)
            parts += 1
        return Response.json({"name": request.params["name"], "sha256": digest.hexdigest(), "parts": parts})

    async def item(self, request: Request) -> Response:
        return Response.json({"item": request.params["item"]})

    async def error(self, request: Request) -> Response:
        raise ERRORS[request.params["reason"]]

    async def bug(self, request: Request) -> Response:
        raise ZeroDivisionError("the secret detail")

    async def wait(self, request: Request) -> Response:
        self.started.set()
        await self.release.wait()
        return Response.json({"waited": True})


@pytest.fixture
async def served(short_path: Path) -> AsyncIterator[Served]:
    served = Served(short_path / "agent.sock")
    await served.server.start()
    yield served
    await served.server.close()


async def assert_alive(served: Served) -> None:
    answer = await ask(served.path, "GET", "/hello")
    assert (answer.status, answer.json()) == (200, {"hello": "world"})


async def settled(condition: Callable[[], bool]) -> None:
    """Let the event loop work off what it has until a condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the server's connections end without telling anybody
            await asyncio.sleep(0)


# --- the socket -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_socket_is_its_owners_alone_whatever_the_umask(short_path: Path, umask: int) -> None:
    path = short_path / "s"
    before = os.umask(umask)
    try:
        listener = bind_socket(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.close()


def test_the_socket_has_no_moment_in_which_others_may_connect(short_path: Path) -> None:
    """The file's mode is right as soon as it has a name: before chmod, with a umask that forbids nothing."""
    path = short_path / "s"
    modes: list[int] = []

    class Watched(type(path)):  # type: ignore[misc]  # the concrete Path class is chosen at run time
        def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
            modes.append(stat.S_IMODE(self.stat().st_mode))
            path.chmod(mode, follow_symlinks=follow_symlinks)

    before = os.umask(0)
    try:
        bind_socket(Watched(path)).close()
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_a_socket_that_a_killed_process_left_is_replaced(short_path: Path) -> None:
    path = short_path / "s"
    script = (
        "import os, signal, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=False, timeout=60)
    assert path.is_socket()
    bind_socket(path).close()


async def test_a_socket_that_a_living_process_listens_at_is_left_alone(served: Served) -> None:
    with pytest.raises(AlreadyRunning, match="another process listens") as caught:
        await served.make().start()
    assert caught.value.hint
    await assert_alive(served)


def test_a_living_process_with_a_full_backlog_is_not_taken_for_dead(short_path: Path) -> None:
    path = short_path / "s"
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        for client in clients:
            client.setblocking(False)
            client.connect_ex(os.fspath(path))
        with pytest.raises(AlreadyRunning):
            bind_socket(path)
        for client in clients:
            client.close()
    assert path.is_socket()


def test_what_is_not_a_socket_is_not_removed(short_path: Path) -> None:
    path = short_path / "s"
    path.write_text("precious")
    with pytest.raises(DeviceError, match="not a socket"):
        bind_socket(path)
    assert path.read_text() == "precious"


def test_a_symbolic_link_in_the_sockets_place_is_not_followed(short_path: Path) -> None:
    victim = short_path / "victim"
    victim.write_text("precious")
    (short_path / "s").symlink_to(victim)
    with pytest.raises(DeviceError, match="not a socket"):
        bind_socket(short_path / "s")
    assert victim.read_text() == "precious"


def test_a_path_of_107_bytes_works_and_one_of_108_says_what_to_do(short_path: Path) -> None:
    longest = short_path / ("x" * (SOCKET_PATH_BYTES_MAX - len(os.fsencode(short_path)) - 1))
    bind_socket(longest).close()
    with pytest.raises(DeviceError, match="more than 107 bytes") as caught:
        bind_socket(longest.with_name(longest.name + "x"))
    assert "shorter path" in caught.value.hint


def test_a_directory_that_is_not_there_is_a_clear_error(short_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot listen at .*No such file"):
        bind_socket(short_path / "absent" / "s")


async def test_closing_removes_the_socket_but_not_a_successors(served: Served) -> None:
    served.path.unlink()
    successor = bind_socket(served.path)
    await served.server.close()
    assert served.path.is_socket()
    successor.close()


async def test_closing_removes_the_socket(short_path: Path) -> None:
    served = Served(short_path / "s")
    await served.server.start()
    await served.server.close()
    await served.server.close()
    assert not served.path.exists()


# --- what a client can ask ------------------------------------------------------------------------


async def test_requests_follow_each_other_on_one_connection(served: Served) -> None:
    client = await RawClient.connect(served.path)
    for number in range(3):
        answer = await client.request("POST", "/echo", str(number).encode())
        assert (answer.status, answer.body) == (200, str(number).encode())
    await client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    await client.close()


async def test_an_unread_body_that_has_arrived_does_not_cost_the_connection(served: Served) -> None:
    client = await RawClient.connect(served.path)
    assert (await client.request("POST", "/ignore", b"not read")).status == 200
    assert (await client.request("GET", "/hello")).status == 200
    await client.close()


@pytest.mark.parametrize(
    ("target", "status", "item"),
    [
        ("/item/a/part", 200, "a"),
        ("/item/a%20b/part", 200, "a b"),
        ("/item/a%2Fb/part", 200, "a/b"),
        ("/item/%C3%A4/part?x=1", 200, "ä"),
        ("http://host/item/a/part", 200, "a"),
        ("/item/a%2Fpart", 404, None),
        ("/item/a/part/", 404, None),
        ("/item//part", 200, ""),
        ("/item/%00/part", 400, None),
        ("/item/%ff/part", 400, None),
        ("/item/../item/a/part", 404, None),
        ("*", 400, None),
        ("http://[", 400, None),
    ],
)
async def test_paths(served: Served, target: str, status: int, item: str | None) -> None:
    answer = await ask(served.path, "GET", target)
    assert answer.status == status
    if item is not None:
        assert answer.json() == {"item": item}


async def test_a_path_for_another_method_says_which(served: Served) -> None:
    answer = await ask(served.path, "DELETE", "/hello")
    assert (answer.status, answer.headers["allow"], answer.reason) == (405, "get", "request-refused")


async def test_a_head_request_gets_no_body_and_the_next_request_is_understood(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WAIT_S)
    assert head.startswith(b"HTTP/1.1 405")
    assert (await client.request("GET", "/hello")).status == 200
    await client.close()


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("misuse", 400),
        ("not-found", 404),
        ("conflict", 409),
        ("content-mismatch", 422),
        ("metadata-replayed", 422),
        ("peer-unreachable", 502),
        ("disk-full", 503),
    ],
)
async def test_an_error_says_whose_fault_it_is(served: Served, reason: str, status: int) -> None:
    answer = await ask(served.path, "GET", f"/error/{reason}")
    error = ERRORS[reason]
    assert answer.status == status
    assert answer.json() == {
        "error": {
            "reason": reason,
            "exit_code": error.exit_code,
            "message": error.message,
            "hint": error.hint,
        }
    }


async def test_a_fault_of_ours_is_logged_with_its_traceback_and_not_shown(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await ask(served.path, "GET", "/bug")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert answer.reason == "error"
    assert any(record.exc_info and "ZeroDivisionError" in str(record.exc_info) for record in caplog.records)
    await assert_alive(served)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"a":1}', 200), (b"", 400), (b"[]", 400), (b"{", 400), (b"\xff", 400), (b"[" * 100_000, 400)],
)
async def test_a_json_body_must_be_an_object(served: Served, body: bytes, status: int) -> None:
    assert (await ask(served.path, "POST", "/json", body)).status == status


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 431)])
@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "in-two"])
async def test_the_head_is_bounded(served: Served, excess: int, status: int, *, at_once: bool) -> None:
    head = b"GET /hello HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"
    filler = b"x" * (limits.API_HEAD_BYTES_MAX - len(head) + excess)
    head = head.replace(b"X: ", b"X: " + filler)
    client = await RawClient.connect(served.path)
    await client.send(head if at_once else head[:5000])
    if not at_once:
        await client.send(head[5000:])
    assert (await client.answer()).status == status
    assert served.drops == ({"api-too-large": 1} if excess else {})
    await client.close()
    await assert_alive(served)


async def test_a_head_that_never_ends_is_cut_off(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\nX: " + b"x" * limits.API_HEAD_BYTES_MAX)
    assert (await client.answer()).status == 431
    assert await client.ended() == b""
    await client.close()


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "announced"])
async def test_the_body_is_bounded(served: Served, excess: int, status: int, *, chunked: bool) -> None:
    body = os.urandom(limits.API_BODY_BYTES_MAX + excess)
    client = await RawClient.connect(served.path)
    if chunked:
        head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        answer = await client.answer()
    else:
        answer = await client.request("POST", "/echo", body)
    assert answer.status == status
    assert status != 200 or answer.body == body
    await client.close()
    await assert_alive(served)


async def test_an_announced_length_beyond_the_limit_is_refused_before_a_byte_of_it_is_sent(
    served: Served,
) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"PUT /stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n")
    await client.send(b"Expect: 100-continue\r\n\r\n")
    assert (await client.answer()).status == 413
    assert await client.ended() == b""
    await client.close()


async def test_a_length_beside_chunked_framing_says_nothing(served: Served) -> None:
    """RFC 9112, section 6.3: chunked overrides it."""
    client = await RawClient.connect(served.path)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 99999999\r\n\r\n"
    await client.send(head + b"2\r\nhi\r\n0\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.body) in {(200, b"hi"), (400, answer.body)}
    await client.close()
    await assert_alive(served)


async def test_several_mebibytes_stream_through(served: Served) -> None:
    data = os.urandom(STREAM_MAX)
    client = await RawClient.connect(served.path)
    answer = await client.request("PUT", "/stream/targets/a%20b/c", data)
    result = answer.json()
    assert result["name"] == "targets/a b/c"
    assert result["sha256"] == hashlib.sha256(data).hexdigest()
    assert result["parts"] > 1
    assert (await client.request("GET", "/hello")).status == 200
    await client.close()


async def test_a_client_that_waits_for_100_continue_gets_it(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.answer()).status == 100
    await client.send(b"hi")
    answer = await client.answer()
    assert (answer.status, answer.body) == (200, b"hi")
    await client.close()


async def test_the_33rd_connection_is_refused_and_works_once_another_ended(served: Served) -> None:
    clients = [await RawClient.connect(served.path) for _ in range(limits.API_CONNECTIONS_MAX)]
    for client in clients:
        assert (await client.request("GET", "/hello")).status == 200
    late = await RawClient.connect(served.path)
    assert (await late.answer()).status == 503
    assert await late.ended() == b""
    await late.close()
    assert served.drops == {"api-connections": 1}
    assert served.server.connections == limits.API_CONNECTIONS_MAX

    await clients[0].send(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (await clients[0].answer()).status == 200
    await clients[0].close()
    await settled(lambda: served.server.connections == limits.API_CONNECTIONS_MAX - 1)
    await assert_alive(served)
    for client in clients[1:]:
        await client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /hello HTTP/1.1\r\nHo",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
        b"PUT /stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
    ],
    ids=["head", "body", "stream"],
)
async def test_a_client_that_never_ends_its_request_is_let_go(short_path: Path, sent: bytes) -> None:
    served = Served(short_path / "s")
    server = served.make(timeout_s=0.05)
    await server.start()
    client = await RawClient.connect(served.path)
    await client.send(sent)
    assert (await client.answer()).status == 408
    assert await client.ended() == b""
    assert served.drops == {"api-timeout": 1}
    await client.close()
    await server.close()


async def test_slow_loris_gains_nothing_by_sending_a_byte_now_and_then(short_path: Path) -> None:
    served = Served(short_path / "s")
    server = served.make(timeout_s=0.2)
    await server.start()
    client = await RawClient.connect(served.path)

    async def drip() -> None:
        await client.send(b"GET /hello HTTP/1.1\r\nX: ")
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    assert (await client.answer()).status == 408
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    await client.close()
    await server.close()


async def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(short_path: Path) -> None:
    served = Served(short_path / "s")
    server = served.make(timeout_s=0.05)
    await server.start()
    client = await RawClient.connect(served.path)
    assert (await client.request("GET", "/hello")).status == 200
    assert await client.ended() == b""
    assert served.drops == {}
    await client.close()
    await server.close()


# --- garbage --------------------------------------------------------------------------------------

GARBAGE = [
    b"\r\n",
    b"\x00" * 100 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 3,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /hello HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"GET /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET /hello HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /hello HTTP/1.1\r\n\r\n",
    b"GET /h\xe4llo HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / hello HTTP/1.1\r\nHost: a\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_answered_counted_and_forgotten(served: Served, garbage: bytes) -> None:
    client = await RawClient.connect(served.path)
    await client.send(garbage)
    assert (await client.answer()).status in {400, 501, 505}
    assert await client.ended() == b""
    await client.close()
    assert served.drops == {"api-malformed": 1}
    await assert_alive(served)


async def test_a_broken_chunk_in_a_streamed_body_is_the_handlers_error(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"PUT /stream/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert (await client.answer()).status == 400
    await client.close()
    assert served.drops == {"api-malformed": 1}


async def test_a_client_that_vanishes_in_the_middle_of_its_body_costs_nothing(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"PUT /stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc")
    client.writer.transport.abort()
    await assert_alive(served)
    await settled(lambda: served.server.connections == 0)
    assert served.drops == {"api-malformed": 1}


async def test_connect_and_upgrade_are_not_done(served: Served) -> None:
    client = await RawClient.connect(served.path)
    await client.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.answer()).status in {400, 404}
    await client.close()
    client = await RawClient.connect(served.path)
    await client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert (await client.answer()).status == 200
    await client.close()
    await assert_alive(served)


def pieces() -> st.SearchStrategy[list[bytes]]:
    words = st.sampled_from(
        [
            *GARBAGE,
            b"GET ",
            b"POST ",
            b"PUT ",
            b"/hello",
            b"/echo",
            b"/stream/a",
            b"/item/",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b"Host: a\r\n",
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"\r\n",
            b"3\r\nabc\r\n0\r\n\r\n",
            b"abc",
        ]
    )
    return st.lists(words | st.binary(max_size=64), max_size=16)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    [b"POST ", b"/echo", b" HTTP/1.1\r\n", b"Host: a\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"-1"]
)
@given(st.lists(pieces(), min_size=1, max_size=16))
def test_no_bytes_take_the_server_down(
    short_path: Path, caplog: pytest.LogCaptureFixture, clients: list[list[bytes]] | list[bytes]
) -> None:
    async def attack() -> None:
        served = Served(short_path / "s")
        await served.server.start()
        for parts in clients:
            client = await RawClient.connect(served.path)
            client.writer.write(b"".join(parts) if isinstance(parts, list) else parts)
            client.writer.write_eof()
            await asyncio.wait_for(client.reader.read(), WAIT_S)
            await client.close()
        await assert_alive(served)
        await served.server.close()
        assert served.server.connections == 0

    caplog.clear()
    asyncio.run(attack())
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- the end --------------------------------------------------------------------------------------


async def test_closing_ends_idle_and_stuck_connections_within_seconds(short_path: Path) -> None:
    served = Served(short_path / "s")
    await served.server.start()
    idle = await RawClient.connect(served.path)
    assert (await idle.request("GET", "/hello")).status == 200
    stuck = await RawClient.connect(served.path)
    await stuck.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.wait_for(served.started.wait(), WAIT_S)
    async with asyncio.timeout(limits.SHUTDOWN_S):
        await served.server.close()
    assert await idle.ended() == b""
    assert await stuck.ended() == b""
    assert served.server.connections == 0
    for client in (idle, stuck):
        await client.close()


async def test_a_request_under_way_is_answered_while_the_server_closes(short_path: Path) -> None:
    served = Served(short_path / "s")
    await served.server.start()
    client = await RawClient.connect(served.path)
    await client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.wait_for(served.started.wait(), WAIT_S)
    closing = asyncio.create_task(served.server.close())
    await asyncio.sleep(0)
    served.release.set()
    assert (await client.answer()).json() == {"waited": True}
    await asyncio.wait_for(closing, WAIT_S)
    await client.close()


# --- the router -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["/{", "/a//b", "/{rest...}/more", "/{Upper}", "", "/"])
def test_a_pattern_that_is_none_is_refused_when_it_is_added(pattern: str) -> None:
    async def handler(request: Request) -> Response:
        return Response()

    with pytest.raises(ValueError, match="not a pattern"):
        Router().add("GET", pattern, handler)


def test_a_second_handler_for_the_same_is_refused() -> None:
    async def handler(request: Request) -> Response:
        return Response()

    router = Router()
    router.add("GET", "/a", handler)
    with pytest.raises(ValueError, match="already"):
        router.add("GET", "/a", handler)
    router.add("PUT", "/a", handler)
    assert router.routes == [("GET", "/a"), ("PUT", "/a")]


@given(st.text(max_size=100))
def test_a_path_decodes_or_is_refused(path: str) -> None:
    with contextlib.suppress(RequestRefused):
        assert len(decode_path("/" + path)) == path.count("/") + 1
