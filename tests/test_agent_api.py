"""The local API as a client meets it: every route over a real socket, and the documentation's word for each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from driftseed.agent.api import routes
from driftseed.agent.config import CONFIG_FILE, KEYS, RESTART_KEYS
from driftseed.agent.localhttp import LocalServer
from driftseed.agent.submissions import Submissions
from driftseed.core import limits
from driftseed.trust.repository import FleetRepository
from support_agent import DEPLOYMENT, RUNNING, MadeUpAgent, TrustingTaker
from support_http import RawClient, ask
from support_trust import FakeClock, add_release, make_fleet

DOCS = Path(__file__).parent.parent / "docs" / "api.md"
CONTENT = os.urandom(2 * limits.MIB + 7)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Running:
    """An agent's API on a socket."""

    socket: Path
    data: Path
    agent: MadeUpAgent
    taker: TrustingTaker
    server: LocalServer

    async def ask(self, method: str, path: str, value: Any = None, status: int = 200) -> Any:
        body = None if value is None else json.dumps(value).encode()
        answer = await ask(self.socket, method, path, body)
        assert answer.status == status, answer.body
        return answer.json()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> FleetRepository:
    directory = tmp_path_factory.mktemp("publisher")
    repository = make_fleet(directory / "fleet", FakeClock())
    add_release(repository, directory, contents={"": CONTENT})
    repository.add_deployment(deployment_id=uuid4().hex, release="app", version="1.0")
    return repository


@pytest.fixture
async def running(short_path: Path, tmp_path: Path, repository: FleetRepository) -> AsyncIterator[Running]:
    taker = TrustingTaker(tmp_path / "agent", repository.first_root, FakeClock())
    agent = MadeUpAgent(tmp_path)
    submissions = Submissions(tmp_path, taker, new_id=lambda: uuid4().hex)
    await submissions.start()
    socket = short_path / "agent.sock"
    server = LocalServer(socket, routes(agent, submissions), dropped=lambda _: None)
    await server.start()
    yield Running(socket, tmp_path, agent, taker, server)
    await server.close()
    await submissions.close()


async def test_status_and_lists_have_the_fields_of_the_contract(running: Running) -> None:
    status = await running.ask("GET", "/v1/status")
    assert set(status) == {
        *("device", "fleet", "fleet_name", "role", "agent_version", "uptime_s", "timestamp_version"),
        *("snapshot_version", "metadata_expires", "hubs", "neighbours", "installed", "labels", "inventory"),
        *("free_bytes", "content", "clock_skew_s", "counters", "refusals", "engine", "addresses", "relay"),
        "problems",
    }
    assert set(status["content"]) == {"bytes", "quota", "files"}
    assert set(status["counters"]) == {"drops", "refusals"}
    assert set(status["refusals"][0]) == {"time", "reason", "detail", "peer"}
    assert set(status["engine"]) == {"running", "pid"}
    assert set(status["problems"][0]) == {"reason", "message", "hint"}
    assert set(status["installed"]["app"]) == {"version", "manifest_sha256", "deployment", "at"}
    overlay = await running.ask("GET", "/v1/overlay")
    assert set(overlay) == {"device", "addresses", "observed", "relay", "address", "hubs", "known_devices"}
    assert set(overlay["address"]) == {"device", "addrs", "relay"}
    (peer,) = (await running.ask("GET", "/v1/peers"))["peers"]
    assert set(peer) == {
        *("device", "role", "state", "path", "rtt_ms", "address", "since_s", "direction"),
        *("bytes_in", "bytes_out", "purpose", "reason"),
    }
    update = (await running.ask("GET", "/v1/updates"))["updates"][0]
    fields = {
        *("deployment", "release", "version", "state", "progress", "reason", "detail", "attempts"),
        *("started", "changed", "finished", "seconds", "bytes_from"),
    }
    assert set(update) == fields
    detail = await running.ask("GET", f"/v1/updates/{DEPLOYMENT}")
    assert set(detail) == fields | {"history"}
    assert detail["history"] == [{"at": 1.0, "state": "waiting", "event": "start"}]
    assert await running.ask("POST", "/v1/announce") == {"neighbours": 2, "timestamp_version": 4}


async def test_metrics_are_prometheus_text(running: Running) -> None:
    answer = await ask(running.socket, "GET", "/v1/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.body.endswith(b"a 1\n")


async def test_an_update_is_removed_unless_it_is_under_way_or_unknown(running: Running) -> None:
    assert await running.ask("DELETE", f"/v1/updates/{DEPLOYMENT}") == {"removed": DEPLOYMENT}
    error = (await running.ask("DELETE", f"/v1/updates/{RUNNING}", status=409))["error"]
    assert (error["reason"], error["exit_code"]) == ("conflict", 22)
    assert (await running.ask("DELETE", "/v1/updates/x", status=404))["error"]["reason"] == "not-found"
    assert running.agent.removed == [DEPLOYMENT]


async def test_settings_are_changed_kept_and_named_when_they_need_a_restart(running: Running) -> None:
    answer = await running.ask("PATCH", "/v1/config", {"neighbours_max": 7, "listen": "127.0.0.1:7700"})
    assert answer["config"]["neighbours_max"] == 7
    assert answer["restart"] == ["listen"]
    assert answer["defaults"]["neighbours_max"] == limits.NEIGHBOURS_ACTIVE_MAX
    assert await running.ask("GET", "/v1/config") == answer
    assert set(answer["config"]) == set(answer["defaults"]) == set(KEYS)
    kept = json.loads((running.data / CONFIG_FILE).read_bytes())
    assert kept == {"listen": "127.0.0.1:7700", "neighbours_max": 7}


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"neighbors_max": 7}, "config-invalid", "no setting is called 'neighbors_max'"),
        ({"neighbours_max": "7"}, "config-invalid", "neighbours_max: expected int, got str"),
        ([], "request-refused", "the body is not a JSON object"),
    ],
)
async def test_a_wrong_setting_changes_nothing(
    running: Running, changes: Any, reason: str, message: str
) -> None:
    error = (await running.ask("PATCH", "/v1/config", changes, status=400))["error"]
    assert (error["reason"], error["message"]) == (reason, message)
    assert not (running.data / CONFIG_FILE).exists()


async def test_a_submission_goes_through_the_socket(running: Running, repository: FleetRepository) -> None:
    submission = (await running.ask("POST", "/v1/submit", status=201))["submission"]
    client = await RawClient.connect(running.socket)
    for name, data in repository.files().items():
        answer = await client.request("PUT", f"/v1/submit/{submission}/files/{name}", data)
        assert (answer.status, answer.json()) == (200, {"name": name, "length": len(data)})
    answer = await client.request("PUT", f"/v1/submit/{submission}/content/{SHA256}", CONTENT)
    assert (answer.status, answer.json()) == (200, {"sha256": SHA256, "length": len(CONTENT)})
    answer = await client.request("POST", f"/v1/submit/{submission}/commit")
    assert answer.json() == {"accepted": True, "timestamp_version": repository.timestamp_version}
    assert (running.taker.kept / SHA256).read_bytes() == CONTENT
    await client.close()


async def test_what_a_submission_is_refused_for_is_said(
    running: Running, repository: FleetRepository
) -> None:
    submission = (await running.ask("POST", "/v1/submit", status=201))["submission"]
    begin = f"/v1/submit/{submission}"
    assert (await running.ask("POST", "/v1/submit", status=409))["error"]["reason"] == "conflict"
    for name in ("metadata/..%2f..%2fagent.sqlite", "metadata/%2e%2e/agent.sqlite", "etc/passwd"):
        answer = await ask(running.socket, "PUT", f"{begin}/files/{name}", b"x")
        assert (answer.status, answer.reason) == (400, "misuse")
    answer = await ask(running.socket, "PUT", f"{begin}/content/{SHA256}", CONTENT)
    assert (answer.status, answer.reason) == (502, "file-missing")
    for name, data in repository.files().items():
        await ask(running.socket, "PUT", f"{begin}/files/{name}", data)
    answer = await ask(running.socket, "PUT", f"{begin}/content/{SHA256}", CONTENT[:-1] + b"x")
    assert (answer.status, answer.reason) == (422, "content-mismatch")
    answer = await ask(running.socket, "PUT", f"{begin}/content/{SHA256}", CONTENT[:-1])
    assert (answer.status, answer.reason) == (422, "content-mismatch")
    assert await running.ask("DELETE", begin) == {"removed": submission}
    assert (await running.ask("POST", f"{begin}/commit", status=404))["error"]["reason"] == "not-found"


async def test_a_client_that_vanishes_in_the_middle_of_content_leaves_nothing(
    running: Running, repository: FleetRepository
) -> None:
    submission = (await running.ask("POST", "/v1/submit", status=201))["submission"]
    for name, data in repository.files().items():
        await ask(running.socket, "PUT", f"/v1/submit/{submission}/files/{name}", data)
    client = await RawClient.connect(running.socket)
    head = f"PUT /v1/submit/{submission}/content/{SHA256} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    await client.send(head.encode() + CONTENT[: limits.MIB + 1])
    client.writer.transport.abort()
    async with asyncio.timeout(20):
        while running.server.connections:  # noqa: ASYNC110 - a connection ends without telling anybody
            await asyncio.sleep(0.001)
    sizes = await asyncio.to_thread(
        lambda: [path.stat().st_size for path in running.data.glob("submissions/*/*.unverified")]
    )
    assert max(sizes) < limits.MIB
    answer = await ask(running.socket, "PUT", f"/v1/submit/{submission}/content/{SHA256}", CONTENT)
    assert answer.status == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_can_do_what_the_documentation_says(
    running: Running, repository: FleetRepository, tmp_path: Path
) -> None:
    """The documented commands, with curl's own ways: Expect: 100-continue, keep-alive, chunked."""

    async def curl(*arguments: str | Path) -> Any:
        command = ["curl", "-sS", "--max-time", "30", "--unix-socket", running.socket, *arguments]
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=60)
        return json.loads(result.stdout)

    assert (await curl("http://localhost/v1/status"))["fleet_name"] == "harbour"
    submission = (await curl("-X", "POST", "http://localhost/v1/submit"))["submission"]
    url = f"http://localhost/v1/submit/{submission}"
    for name, data in repository.files().items():
        (tmp_path / "file").write_bytes(data)
        assert (await curl("-T", tmp_path / "file", f"{url}/files/{name}"))["length"] == len(data)
    (tmp_path / "content").write_bytes(CONTENT)
    chunked = ("-H", "Transfer-Encoding: chunked")
    for extra in ((), chunked):
        answer = await curl("-T", tmp_path / "content", *extra, f"{url}/content/{SHA256}")
        assert answer == {"sha256": SHA256, "length": len(CONTENT)}
    assert (await curl("-X", "POST", f"{url}/commit"))["accepted"] is True


# --- documentation --------------------------------------------------------------------------------


def test_every_route_is_documented_and_no_other(running: Running) -> None:
    text = DOCS.read_text(encoding="utf-8").partition("# The hub")[0]
    documented = re.findall(r"^### `(GET|POST|PUT|PATCH|DELETE) (/v1/\S+)`", text, re.MULTILINE)
    assert sorted(documented) == sorted(running.server.router.routes)


def test_every_setting_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", text, re.MULTILINE)
    assert [name for name, _ in documented] == list(KEYS)
    assert {name for name, restart in documented if restart == "yes"} == RESTART_KEYS
