"""The hub's API: who may ask, how a token is guarded, and what is answered."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from driftseed.core import limits
from driftseed.core.apiviews import (
    ContentView,
    CountersView,
    EngineView,
    HubDevices,
    HubStatus,
    PeerView,
)
from driftseed.core.errors import AlreadyRunning, DiskFull, Misuse, RequestRefused, UnsafePermissions
from driftseed.hub.api import (
    FAILURE_ADDRESSES_MAX,
    FAILURES_MAX,
    FAILURES_WINDOW_S,
    TOKEN_FILE,
    OwnerServer,
    TokenGuard,
    Unauthorised,
    load_token,
    token_app,
)
from driftseed.hub.observer import FleetObserver
from driftseed.hub.views import DeploymentView, DeviceView
from support_agent import peer_view
from support_http import Answer, RawClient, ask
from support_hub import Clock, MadeUpFleet, deployment, update

TOKEN = "a-token-of-enough-length"


class MadeUpHub:
    """A hub whose fleet is real and whose other answers are made up."""

    def __init__(self, observer: FleetObserver) -> None:
        self.observer = observer
        self.failure: Exception | None = None

    async def status(self) -> HubStatus:
        if self.failure is not None:
            raise self.failure
        return HubStatus(
            device="99" * 32,
            fleet="f1" * 32,
            fleet_name="harbour",
            version="0.1.0",
            uptime_s=1.0,
            timestamp_version=4,
            snapshot_version=3,
            metadata_expires=None,
            devices=HubDevices(known=1, connected=0, stuck=0),
            relay={},
            content=ContentView(bytes=0, quota=1, files=0),
            counters=CountersView(drops={}, refusals={}),
            engine=EngineView(running=True, pid=1),
            address="99@127.0.0.1:1",
        )

    async def devices(self) -> Sequence[DeviceView]:
        return await self.observer.devices({})

    async def deployments(self) -> Sequence[DeploymentView]:
        return await self.observer.deployments([deployment()])

    async def peers(self) -> Sequence[PeerView]:
        return [peer_view()]

    async def metrics(self) -> str:
        return "a 1\n"


@dataclass
class RunningHub:
    hub: MadeUpHub
    socket: Path
    url: str
    clock: Clock

    async def over_tcp(self, path: str, token: str | None = TOKEN, method: str = "GET") -> Answer:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with (
            ClientSession() as session,
            session.request(method, self.url + path, headers=headers, allow_redirects=False) as answer,
        ):
            lower = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, lower, await answer.read())


@pytest.fixture
async def running(short_path: Path, tmp_path: Path) -> AsyncIterator[RunningHub]:
    clock = Clock(0.0)
    observer = await FleetObserver.open(tmp_path / "hub.sqlite", Clock())
    hub = MadeUpHub(observer)
    owner = OwnerServer(short_path / "hub.sock", hub)
    await owner.start()
    # As a hub mounts it: under /api, beside other routes.
    app = web.Application()
    app.add_subapp("/api", token_app(hub, TokenGuard(TOKEN, clock)))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield RunningHub(hub, short_path / "hub.sock", f"http://127.0.0.1:{port}", clock)
    await runner.cleanup()
    await owner.close()
    assert not (short_path / "hub.sock").exists()
    await observer.close()


ROUTES = ["/v1/status", "/v1/devices", "/v1/deployments", "/v1/peers", "/v1/metrics"]


@pytest.mark.parametrize("path", ROUTES)
async def test_the_owner_asks_without_a_token_and_others_with_one(running: RunningHub, path: str) -> None:
    answer = await ask(running.socket, "GET", path)
    over_tcp = await running.over_tcp(f"/api{path}")
    assert (answer.status, over_tcp.status) == (200, 200)
    assert answer.body == over_tcp.body
    assert over_tcp.headers["cache-control"] == "no-store"
    assert not {name for name in over_tcp.headers if name.startswith("access-control")}


async def test_the_owners_socket_is_the_owners_alone(running: RunningHub) -> None:
    mode = await asyncio.to_thread(running.socket.stat)
    assert stat.S_IMODE(mode.st_mode) == 0o600
    with pytest.raises(AlreadyRunning):
        await OwnerServer(running.socket, running.hub).start()
    assert (await ask(running.socket, "GET", "/v1/status")).status == 200


async def test_rows_have_the_fields_of_the_contract(running: RunningHub) -> None:
    fleet = MadeUpFleet()
    busy, broken = fleet.device({"site": "glasgow"}), fleet.device()
    for device in (busy, broken):
        await running.hub.observer.member(device.member)
    await running.hub.observer.add(busy.report(1, [update("downloading", progress=0.0)]))
    await running.hub.observer.add(broken.report(1, [update("rolled-back", reason="health-check-failed")]))

    rows = (await ask(running.socket, "GET", "/v1/devices")).json()["devices"]
    by_device = {row["device"]: row for row in rows}
    assert set(rows[0]) == {
        *("device", "labels", "inventory", "agent_version", "installed", "doing", "failed", "stuck"),
        *("heard_s", "connected", "path", "updates", "refusals", "clock_skew_s", "free_bytes", "sequence"),
    }
    assert set(by_device[busy.id]["doing"]) >= {"release", "version", "state", "progress"}
    assert set(by_device[broken.id]["failed"]) >= {"release", "version", "reason", "detail"}
    assert set(by_device[broken.id]["stuck"]) == {"why", "reason", "detail", "since_s"}

    (row,) = (await ask(running.socket, "GET", "/v1/deployments")).json()["deployments"]
    assert set(row) == {
        *("deployment", "sequence", "release", "version", "selector", "created", "addressed"),
        *("counts", "reasons", "failed"),
    }
    assert sum(row["counts"].values()) == row["addressed"] == 2
    assert [each["device"] for each in row["failed"]] == [broken.id]
    status = (await ask(running.socket, "GET", "/v1/status")).json()
    assert set(status) == {
        *("device", "fleet", "fleet_name", "role", "version", "uptime_s", "timestamp_version"),
        *("snapshot_version", "metadata_expires", "devices", "relay", "content", "counters", "engine"),
        "address",
    }


@pytest.mark.parametrize(
    "token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "tökén", "\xff"]
)
async def test_without_the_token_nothing_is_said(running: RunningHub, token: str | None) -> None:
    for path in (*ROUTES, "/v1/nothing"):
        if token is not None and path not in ROUTES[:1]:
            continue  # wrong ones are counted: one for each token is enough
        answer = await running.over_tcp(f"/api{path}", token)
        assert (answer.status, answer.reason) == (401, "request-refused")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "fleet" not in answer.json()


async def test_what_is_not_there_or_not_possible_is_said_in_json(running: RunningHub) -> None:
    for path in ("/v1/nothing", "/", "/v1/status/", "//v1/status"):
        answer = await ask(running.socket, "GET", path)
        assert (answer.status, answer.reason) == (404, "not-found")
    answer = await ask(running.socket, "POST", "/v1/status", b"")
    assert (answer.status, answer.reason, answer.headers["allow"]) == (405, "request-refused", "get")
    assert (await running.over_tcp("/api/v1/nothing")).status == 404


async def test_errors_keep_their_reason_and_faults_of_ours_keep_their_secrets(
    running: RunningHub, caplog: pytest.LogCaptureFixture
) -> None:
    running.hub.failure = DiskFull("no space", hint="free some")
    answer = await ask(running.socket, "GET", "/v1/status")
    assert (answer.status, answer.reason) == (503, "disk-full")
    running.hub.failure = ZeroDivisionError("the secret detail")
    answer = await ask(running.socket, "GET", "/v1/status")
    assert (answer.status, answer.reason) == (500, "error")
    assert b"secret" not in answer.body
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_garbage_does_not_take_the_hub_down(running: RunningHub, garbage: bytes) -> None:
    client = await RawClient.connect(running.socket)
    await client.send(garbage)
    await client.ended()
    await client.close()
    assert (await ask(running.socket, "GET", "/v1/status")).status == 200


# --- the token ------------------------------------------------------------------------------------


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    token = load_token(tmp_path)
    path = tmp_path / TOKEN_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) >= 43
    assert load_token(tmp_path) == token
    path.unlink()
    assert load_token(tmp_path) != token


def test_a_token_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    load_token(tmp_path)
    (tmp_path / TOKEN_FILE).chmod(0o640)
    with pytest.raises(UnsafePermissions) as caught:
        load_token(tmp_path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "short", "two words of a token", "x" * 1025, "tökén" * 8, "a" * 20 + "\nb"]
)
def test_a_file_that_holds_no_token_is_not_used(tmp_path: Path, text: str) -> None:
    path = tmp_path / TOKEN_FILE
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(Misuse, match="no usable token"):
        load_token(tmp_path)


def guess(guard: TokenGuard, times: int, address: str = "192.0.2.1") -> None:
    for _ in range(times):
        with pytest.raises(Unauthorised):
            guard.check(address, "Bearer wrong")


def test_guessing_is_slowed_down_and_the_right_token_does_not_help_meanwhile() -> None:
    clock = Clock(0.0)
    guard = TokenGuard(TOKEN, clock)
    guess(guard, FAILURES_MAX)
    with pytest.raises(RequestRefused) as caught:
        guard.check("192.0.2.1", f"Bearer {TOKEN}")
    assert caught.value.status == 429
    guard.check("192.0.2.2", f"Bearer {TOKEN}")
    clock.now = FAILURES_WINDOW_S
    guard.check("192.0.2.1", f"bearer  {TOKEN} ")


def test_one_guess_fewer_is_not_punished_and_success_wipes_the_slate() -> None:
    guard = TokenGuard(TOKEN, Clock(0.0))
    guess(guard, FAILURES_MAX - 1)
    guard.check("192.0.2.1", f"Bearer {TOKEN}")
    guess(guard, FAILURES_MAX - 1)
    guard.check("192.0.2.1", f"Bearer {TOKEN}")


def test_asking_without_a_token_is_no_guess() -> None:
    guard = TokenGuard(TOKEN, Clock(0.0))
    for _ in range(FAILURES_MAX + 1):
        with pytest.raises(Unauthorised):
            guard.check("192.0.2.1", None)
    guard.check("192.0.2.1", f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    "header", ["", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer \udcff", "Bearer " + "x" * 10_000]
)
def test_no_header_passes_for_the_token(header: str) -> None:
    with pytest.raises(Unauthorised):
        TokenGuard(TOKEN, Clock(0.0)).check("192.0.2.1", header)


def test_remembered_addresses_are_bounded() -> None:
    guard = TokenGuard(TOKEN, Clock(0.0))
    for number in range(FAILURE_ADDRESSES_MAX + 10):
        guess(guard, 1, f"2001:db8::{number:x}")
    assert len(guard._failures) == FAILURE_ADDRESSES_MAX


async def test_after_too_many_wrong_tokens_http_says_429(running: RunningHub) -> None:
    for _ in range(FAILURES_MAX):
        assert (await running.over_tcp("/api/v1/status", "wrong")).status == 401
    answer = await running.over_tcp("/api/v1/status")
    assert (answer.status, answer.reason) == (429, "request-refused")
    assert (await ask(running.socket, "GET", "/v1/status")).status == 200
    running.clock.now = FAILURES_WINDOW_S
    assert (await running.over_tcp("/api/v1/status")).status == 200


async def test_closing_is_quick(short_path: Path, tmp_path: Path) -> None:
    observer = await FleetObserver.open(tmp_path / "a", Clock())
    owner = OwnerServer(short_path / "s", MadeUpHub(observer))
    await owner.start()
    client = await RawClient.connect(short_path / "s")
    assert (await client.request("GET", "/v1/status")).status == 200
    async with asyncio.timeout(limits.SHUTDOWN_S):
        await owner.close()
    assert await client.ended() == b""
    await client.close()
    await observer.close()
