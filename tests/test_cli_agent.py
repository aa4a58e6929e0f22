"""Questions to an agent or a hub: what is asked, what is shown, and what becomes of answers that are none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driftseed.cli.client import Client, hub_client
from driftseed.core.errors import AgentUnreachable, Misuse, UnsafePermissions
from driftseed.core.model import NodeAddress
from driftseed.publish.fleet import invite
from driftseed.store.files import write_secret
from driftseed.trust.repository import FleetRepository
from support_cli import Cli, run_process
from support_cli_node import FakeNode, on_port, on_socket

DEVICE = "ab" * 32
UPDATE = {
    "deployment": "0123456789abcdef0123456789abcdef",
    "release": "app",
    "version": "2.0",
    "state": "downloading",
    "progress": 0.5,
    "reason": "",
    "detail": "",
    "attempts": 1,
    "seconds": 1.25,
    "bytes_from": {"hub/relayed": 1024, "agent/lan": 3 * 1024 * 1024},
}
STATUS = {
    "device": DEVICE,
    "fleet": "cd" * 32,
    "fleet_name": "isles",
    "role": "agent",
    "uptime_s": 7200,
    "timestamp_version": 7,
    "snapshot_version": 5,
    "metadata_expires": "2030-01-01T00:00:00Z",
    "hubs": 1,
    "neighbours": 3,
    "installed": {"app": {"version": "1.0", "manifest_sha256": "00" * 32}},
    "labels": {"site": "glasgow"},
    "free_bytes": 3 * 1024**3,
    "content": {"bytes": 1024, "quota": 2048, "files": 2},
    "refusals": [{"time": 0, "reason": "metadata-replayed", "detail": "version 3 after 7", "peer": DEVICE}],
    "problems": [{"reason": "disk-full", "message": "no space", "hint": "free some"}],
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("DRIFTSEED_DATA", "DRIFTSEED_HUB", "DRIFTSEED_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Cli(capsys)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    node = FakeNode(
        {
            ("GET", "/v1/status"): (200, STATUS),
            ("GET", "/v1/updates"): (200, {"updates": [UPDATE]}),
        }
    )
    with on_socket(node, tmp_path / "agent.sock"):
        yield node


# --- agent -------------------------------------------------------------------------------------------


def test_status_shows_what_is_wrong_and_what_to_do(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    shown = cli.ok("agent", "status", "--data", tmp_path).out
    for text in (
        "isles",
        "app 1.0",
        "site=glasgow",
        "metadata-replayed: version 3 after 7",
        "no space",
        "free some",
    ):
        assert text in shown
    assert cli.ok("agent", "status", "--data", tmp_path, "--json").json == STATUS
    assert cli.ok("agent", "status", "--socket", tmp_path / "agent.sock", "--json").json == STATUS


def test_the_data_directory_may_come_from_the_environment(
    cli: Cli, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_DATA", str(tmp_path))
    assert cli.ok("agent", "status", "--json").json == STATUS


def test_peers_are_shown_with_path_and_round_trip_time(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    peer = {
        "device": DEVICE, "role": "hub", "state": "linked", "path": "relayed", "rtt_ms": 12.4, "address": None,
        "since_s": 65, "direction": "out", "bytes_in": 1, "bytes_out": 2048, "purpose": ["overlay", "tunnel"],
    }  # fmt: skip
    node.answers["GET", "/v1/peers"] = (200, {"peers": [peer]})
    shown = cli.ok("agent", "peers", "--data", tmp_path).out
    for text in (DEVICE[:10], "relayed", "12 ms", "2.0 KiB", "overlay,tunnel"):
        assert text in shown


def test_the_overlay_is_shown_with_what_others_see(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    answer = {
        "device": DEVICE, "addresses": ["10.0.0.7:4711"], "observed": ["192.0.2.9:4711"], "relay": "http://192.0.2.7:7700",
        "address": {}, "hubs": [{"device": DEVICE, "addrs": ["192.0.2.7:7700"]}], "known_devices": 12,
    }  # fmt: skip
    node.answers["GET", "/v1/overlay"] = (200, answer)
    shown = cli.ok("agent", "overlay", "--data", tmp_path).out
    for text in ("10.0.0.7:4711", "192.0.2.9:4711", "http://192.0.2.7:7700", "12 devices"):
        assert text in shown
    assert cli.ok("agent", "overlay", "--data", tmp_path, "--json").json == answer
    node.answers["GET", "/v1/overlay"] = (200, {})
    cli.ok("agent", "overlay", "--data", tmp_path)


def test_updates_show_progress_and_sources(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    shown = cli.ok("agent", "updates", "--data", tmp_path).out
    for text in ("app 2.0", "downloading", "50%", "agent/lan 3.0 MiB"):
        assert text in shown


def test_an_update_is_found_by_the_beginning_of_its_id(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    identifier = str(UPDATE["deployment"])
    node.answers["GET", f"/v1/updates/{identifier}"] = (
        200,
        {**UPDATE, "history": [{"at": 1893456000.5, "state": "waiting", "event": "begin"}]},
    )
    node.answers["DELETE", f"/v1/updates/{identifier}"] = (200, {"removed": identifier})
    shown = cli.ok("agent", "update", "show", "0123", "--data", tmp_path).out
    assert "2030-01-01 00:00:00.500" in shown
    assert "waiting" in shown
    cli.ok("agent", "update", "remove", "0123", "--data", tmp_path)
    assert node.asked[-1].method == "DELETE"
    cli.refused(19, "not-found", "agent", "update", "remove", "ff", "--data", tmp_path)
    cli.refused(19, "not-found", "agent", "update", "remove", "", "--data", tmp_path)
    node.answers["GET", "/v1/updates"] = (200, {"updates": [UPDATE, {**UPDATE, "deployment": "01" * 16}]})
    cli.refused(10, "misuse", "agent", "update", "remove", "01", "--data", tmp_path)


def test_a_refusal_of_the_agent_keeps_its_exit_code_and_reason(
    cli: Cli, node: FakeNode, tmp_path: Path
) -> None:
    conflict = {"error": {"reason": "conflict", "exit_code": 22, "message": "it is installed", "hint": "no"}}
    node.answers["DELETE", f"/v1/updates/{UPDATE['deployment']}"] = (409, conflict)
    assert "it is installed" in cli.refused(
        22, "conflict", "agent", "update", "remove", "0123", "--data", tmp_path
    )


def test_configuration_is_changed_by_json_values_or_text(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    answer = {
        "config": {"quota": 5, "name": "x"},
        "defaults": {"quota": 8, "name": "x"},
        "restart": ["quota"],
    }
    node.answers["PATCH", "/v1/config"] = node.answers["GET", "/v1/config"] = (200, answer)
    outcome = cli.ok("agent", "config", "quota=5", "name=x y", "list=[1]", "--data", tmp_path)
    assert node.asked[-1].body == b'{"quota": 5, "name": "x y", "list": [1]}'
    assert "restart of the agent: quota" in outcome.err
    assert "quota" in cli.ok("agent", "config", "--data", tmp_path).out
    assert node.asked[-1].method == "GET"
    cli.refused(10, "misuse", "agent", "config", "quota", "--data", tmp_path)


def test_announce_says_to_how_many(cli: Cli, node: FakeNode, tmp_path: Path) -> None:
    node.answers["POST", "/v1/announce"] = (200, {"neighbours": 3, "timestamp_version": 7})
    assert "3 neighbours" in cli.ok("agent", "announce", "--data", tmp_path).out


# --- nobody there, or not who it should be -----------------------------------------------------------


def test_an_agent_that_does_not_run_is_said_to_be_not_running(cli: Cli, tmp_path: Path) -> None:
    said = cli.refused(56, "agent-unreachable", "agent", "status", "--data", tmp_path)
    assert "driftseed agent run --data" in said
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "agent.sock"))
    cli.refused(56, "agent-unreachable", "agent", "status", "--data", tmp_path)


@pytest.mark.parametrize(
    "answer", [(200, b"<html>"), (200, b"[1]"), (200, b"\xff"), (502, b""), (200, b"[" * 100_000)]
)
def test_an_answer_of_something_else_is_no_traceback(
    cli: Cli, node: FakeNode, tmp_path: Path, answer: tuple[int, bytes]
) -> None:
    node.answers["GET", "/v1/status"] = answer
    cli.refused(56, "agent-unreachable", "agent", "status", "--data", tmp_path)


@pytest.mark.parametrize(
    "problem", [{}, {"error": "no"}, {"error": {"exit_code": 0}}, {"error": {"exit_code": 999}}]
)
def test_an_error_without_its_parts_is_still_an_error(
    cli: Cli, node: FakeNode, tmp_path: Path, problem: dict[str, Any]
) -> None:
    node.answers["GET", "/v1/status"] = (500, problem)
    assert cli("agent", "status", "--data", tmp_path).code == 1


def test_a_node_that_talks_no_http_is_no_traceback(cli: Cli, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = cli("agent", "status", "--data", tmp_path)
        thread.join(timeout=5)
    assert outcome.code == 56


def test_a_node_that_stalls_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AgentUnreachable, match=r"does not answer within 0\.1 s"):
            Client(path, "agent", timeout_s=0.1).get("/v1/status")


def test_a_file_is_sent_as_it_is(node: FakeNode, tmp_path: Path) -> None:
    client = Client(tmp_path / "agent.sock", "agent")
    node.answers["PUT", "/v1/submit/1/content/aa"] = (200, {})
    (tmp_path / "content").write_bytes(b"x" * 300_000)
    client.send_file("/v1/submit/1/content/aa", tmp_path / "content")
    client.send_file("/v1/submit/1/content/aa", b"bytes")
    assert [asked.body for asked in node.asked] == [b"x" * 300_000, b"bytes"]


def test_a_refusal_in_the_middle_of_a_file_is_read(tmp_path: Path) -> None:
    """Whoever refuses a body answers before it is all there, and closes: the answer is what counts."""
    path = tmp_path / "agent.sock"
    body = b'{"error": {"reason": "disk-full", "exit_code": 72, "message": "no space", "hint": ""}}'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = f"HTTP/1.1 503 Full\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)
                connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(Exception, match="no space") as caught:
            Client(path, "agent").send_file("/v1/submit/1/content/aa", b"x" * 8_000_000)
        thread.join(timeout=5)
    assert getattr(caught.value, "exit_code", None) == 72


# --- hub ---------------------------------------------------------------------------------------------

HUB_STATUS = {
    "device": DEVICE, "fleet": "cd" * 32, "fleet_name": "isles", "role": "hub", "uptime_s": 60,
    "timestamp_version": 7, "snapshot_version": 5, "metadata_expires": "2030-01-01T00:00:00Z",
    "devices": {"known": 4, "connected": 2, "stuck": 1}, "content": {"bytes": 0, "quota": 0, "files": 0},
    "address": f"{DEVICE}@192.0.2.7:7700",
}  # fmt: skip
DEVICES = [
    {"device": "11" * 32, "connected": True, "heard_s": 1, "doing": None, "failed": None, "path": "direct",
     "installed": {"app": {"version": "2.0"}}, "labels": {"site": "glasgow"}, "inventory": {"arch": "arm64"}},
    {"device": "22" * 32, "connected": True, "heard_s": 1, "failed": None,
     "doing": {"release": "app", "version": "2.0", "state": "downloading", "progress": 0.25}},
    {"device": "33" * 32, "connected": False, "heard_s": 7200, "failed": None, "doing": None,
     "stuck": {"why": "silent", "reason": "silent", "detail": "", "since_s": 7200}},
    {"device": "44" * 32, "connected": True, "heard_s": 1, "doing": None,
     "failed": {"release": "app", "version": "2.0", "reason": "health-check-failed", "detail": "exit status 3"},
     "stuck": {"why": "failed", "reason": "health-check-failed", "detail": "exit status 3", "since_s": 65}},
    {"device": "55" * 32, "connected": True, "heard_s": 1, "failed": None,
     "doing": {"release": "app", "version": "2.0", "state": "waiting", "progress": 0,
               "reason": "disk-full", "detail": "3 MiB free"}},
]  # fmt: skip
DEPLOYMENTS = [
    {"deployment": "1" * 32, "sequence": 1, "release": "app", "version": "1.0", "selector": "", "counts": {"succeeded": 4},
     "failed": []},
    {"deployment": "2" * 32, "sequence": 2, "release": "app", "version": "2.0", "selector": "site=glasgow",
     "counts": {"failed": 1}, "failed": [{"device": "44" * 32, "reason": "health-check-failed", "detail": "exit 3"}]},
]  # fmt: skip


@pytest.fixture
def hub() -> FakeNode:
    answers: dict[tuple[str, str], tuple[int, Any]] = {}
    for prefix in ("", "/api"):
        answers["GET", f"{prefix}/v1/status"] = (200, HUB_STATUS)
        answers["GET", f"{prefix}/v1/devices"] = (200, {"devices": DEVICES})
        answers["GET", f"{prefix}/v1/deployments"] = (200, {"deployments": DEPLOYMENTS})
    return FakeNode(answers)


def test_stuck_devices_come_first_with_the_reason(cli: Cli, hub: FakeNode, tmp_path: Path) -> None:
    with on_socket(hub, tmp_path / "hub.sock") as path:
        lines = cli.ok("devices", "--hub", tmp_path).out.splitlines()[2:]
        assert [line.split()[0][:2] for line in lines] == ["44", "33", "55", "22", "11"]
        assert "health-check-failed: exit status 3" in lines[0]
        assert "silent 2h" in lines[1]
        assert "disk-full: 3 MiB free" in lines[2]
        assert "downloading 25%" in lines[3]
        assert "app 2.0" in lines[4]
        assert cli.ok("devices", "--hub", path, "--json").json == {"devices": DEVICES}


def test_status_ends_with_what_needs_a_look(cli: Cli, hub: FakeNode, tmp_path: Path) -> None:
    with on_socket(hub, tmp_path / "hub.sock"):
        shown = cli.ok("status", "--hub", tmp_path).out
        assert "4 known, 2 connected, 1 stuck" in shown
        assert "3 need a look" in shown
        assert "health-check-failed: exit status 3" in shown
        found = cli.ok("status", "--hub", tmp_path, "--json").json
        assert {key: found[key] for key in HUB_STATUS} == HUB_STATUS
        assert [one["device"][:2] for one in found["attention"]] == ["44", "33", "55"]
        hub.answers["GET", "/v1/devices"] = (200, {"devices": DEVICES[:2]})
        assert "every device is well" in cli.ok("status", "--hub", tmp_path).out


def test_deployments_show_counts_and_failures(cli: Cli, hub: FakeNode, tmp_path: Path) -> None:
    with on_socket(hub, tmp_path / "hub.sock"):
        shown = cli.ok("deployments", "--hub", tmp_path).out
    assert shown.index("app 2.0") < shown.index("app 1.0")
    assert "site=glasgow" in shown
    assert "health-check-failed: exit 3" in shown


def test_a_hub_is_asked_by_url_with_a_token(cli: Cli, hub: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_port(hub) as url:
        cli.ok("devices", "--hub", url, "--token", "given")
        assert hub.asked[-1].token == "Bearer given"
        monkeypatch.setenv("DRIFTSEED_TOKEN", "from-environment")
        cli.ok("devices", "--hub", f"{url}/")
        assert hub.asked[-1].token == "Bearer from-environment"
        hub.answers["GET", "/api/v1/devices"] = (401, {})
        said = cli.refused(56, "agent-unreachable", "devices", "--hub", url)
    assert "api-token" in said
    assert "from-environment" not in said


def test_a_socket_is_sent_no_token(hub: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTSEED_TOKEN", "secret")
    with on_socket(hub, tmp_path / "hub.sock"):
        hub_client(str(tmp_path), "secret").get("/v1/status")
    assert hub.asked[-1].token is None


def test_a_socket_that_others_may_write_to_is_not_trusted(hub: FakeNode, tmp_path: Path) -> None:
    with on_socket(hub, tmp_path / "hub.sock") as path:
        path.chmod(0o666)
        with pytest.raises(UnsafePermissions, match="others may write"):
            hub_client(str(tmp_path), None)


@pytest.mark.parametrize("url", ["http://", "http://h:99999", "http://h?x=1", "http://h\n", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Misuse, match="not the URL of a hub"):
        hub_client(url, None)


def test_a_device_cannot_rewrite_the_operators_screen(cli: Cli, hub: FakeNode, tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]well[/]\r\u202e\x9b31m"
    device = {**DEVICES[3], "failed": {"release": evil, "version": evil, "reason": evil, "detail": evil},
              "stuck": {"why": evil, "reason": evil, "detail": evil, "since_s": 1},
              "labels": {evil: evil}, "installed": {evil: {"version": evil}}, "path": evil}  # fmt: skip
    hub.answers["GET", "/v1/devices"] = (200, {"devices": [device]})
    with on_socket(hub, tmp_path / "hub.sock"):
        for command in ("devices", "status"):
            shown = cli.ok(command, "--hub", tmp_path).out
            assert not {"\x1b", "\x07", "\r", "\u202e", "\x9b"} & set(shown)
            assert "[bold" in shown, "markup is text"
            assert cli.ok(command, "--hub", tmp_path, "--json").out.isascii()


@pytest.mark.parametrize(
    "devices",
    [
        [{}],
        [
            {
                "device": None,
                "doing": 3,
                "failed": "x",
                "heard_s": "long",
                "labels": [],
                "installed": 7,
                "updates": {},
            }
        ],
        [{"doing": {"progress": "half", "state": None}}, {"stuck": {"since_s": "long", "why": None}}],
    ],
)
def test_fields_of_another_version_are_no_traceback(
    cli: Cli, hub: FakeNode, tmp_path: Path, devices: list[dict[str, Any]]
) -> None:
    hub.answers["GET", "/v1/devices"] = (200, {"devices": devices})
    with on_socket(hub, tmp_path / "hub.sock"):
        cli.ok("devices", "--hub", tmp_path)
        cli.ok("status", "--hub", tmp_path)


def test_watch_and_json_exclude_each_other(cli: Cli, tmp_path: Path) -> None:
    assert cli("devices", "--watch", "--json", "--hub", tmp_path).code == 10


# --- tickets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticket", ["driftseed1AAAA", "hello", ""])
def test_a_damaged_ticket_is_refused_before_anything_is_made(cli: Cli, tmp_path: Path, ticket: str) -> None:
    cli.refused(13, "ticket-damaged", "agent", "join", ticket, "--data", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_ticket_comes_from_a_file_or_standard_input(cli: Cli, tmp_path: Path) -> None:
    write_secret(tmp_path / "ticket", b"driftseed1AAAA\n")
    cli.refused(13, "ticket-damaged", "agent", "join", f"@{tmp_path / 'ticket'}", "--data", tmp_path / "data")
    cli.refused(19, "not-found", "agent", "join", f"@{tmp_path / 'none'}", "--data", tmp_path / "data")
    cli.refused(13, "ticket-damaged", "agent", "join", f"@{tmp_path}", "--data", tmp_path / "data")
    outcome = run_process("agent", "join", "-", "--data", tmp_path / "data", stdin="driftseed1AAAA\n")
    assert outcome.code == 13
    assert not (tmp_path / "data").exists()


def test_an_expired_ticket_is_told_from_a_damaged_one(cli: Cli, tmp_path: Path) -> None:
    cli.ok("fleet", "init", tmp_path / "fleet", "--no-passphrase")
    repository = FleetRepository.open(tmp_path / "fleet", lambda _: b"", time.time)
    invited = invite(
        repository, uses=1, lifetime_s=60, labels={}, now=time.time() - 3600,
        hubs=[NodeAddress(device=DEVICE, addrs=["127.0.0.1:1"])],
    )  # fmt: skip
    cli.refused(14, "ticket-expired", "agent", "join", invited.ticket, "--data", tmp_path / "data")
    said = cli.refused(
        13, "ticket-damaged", "agent", "join", invited.ticket[:-3], "--data", tmp_path / "data"
    )
    assert "copy it again" in said
    assert not (tmp_path / "data").exists()


# --- what is started ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent", "run", "--listen", "nowhere"],
        ["agent", "run", "--inventory", "arch"],
        ["hub", "run", "--kit", "none", "--data", "d", "--listen", "0.0.0.0"],
        ["hub", "run", "--kit", "none", "--data", "d", "--listen", "127.0.0.1:1", "--public", "x y:1"],
        ["hub", "run", "--kit", "none", "--data", "d", "--listen", "127.0.0.1:1", "--relay-url", "relay"],
        ["hub", "run", "--kit", "none", "--data", "d", "--listen", "127.0.0.1:1"],
    ],
)
def test_a_daemon_with_wrong_arguments_does_not_start(cli: Cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 10
    assert outcome.err.startswith("error: ")
    assert "hint: " in outcome.err
