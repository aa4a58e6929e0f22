"""``driftseed publish``: what ``--via`` may be, and what is refused before anybody is dialled."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core.model import NodeAddress
from driftseed.publish.fleet import invite
from driftseed.trust.repository import FleetRepository
from support_cli import Cli, snapshot
from support_cli_node import Answer, Asked, FakeNode, on_socket


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE", raising=False)
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    directory = tmp_path / "fleet"
    (tmp_path / "app.bin").write_bytes(b"x" * 100_000)
    cli.ok("fleet", "init", directory, "--no-passphrase")
    cli.ok(
        "release",
        "create",
        directory,
        "app",
        "1",
        "--module",
        "single-file",
        "--artifact",
        tmp_path / "app.bin",
    )
    cli.ok("deploy", directory, "app", "--to", "all")
    return directory


def repository(directory: Path) -> FleetRepository:
    return FleetRepository.open(directory, lambda _: b"", time.time)


def ticket(directory: Path, now: float) -> str:
    hub = NodeAddress(device="ab" * 32, addrs=["127.0.0.1:1"])
    return invite(repository(directory), uses=1, lifetime_s=60, labels={}, hubs=[hub], now=now).ticket


class Agent(FakeNode):
    """Takes a submission as an agent does, without verifying it."""

    def answer(self, asked: Asked) -> Answer:
        status, value = super().answer(asked)
        return (200, {}) if asked.method == "PUT" else (status, value)


@pytest.fixture
def agent(fleet: Path, tmp_path: Path) -> Iterator[Agent]:
    status = {
        "device": "cd" * 32,
        "fleet": repository(fleet).fleet_id,
        "snapshot_version": 1,
        "timestamp_version": 1,
    }
    node = Agent(
        {
            ("GET", "/v1/status"): (200, status),
            ("POST", "/v1/submit"): (201, {"submission": "s1"}),
            ("GET", "/v1/submit/s1"): (
                200,
                {"missing": {hashlib.sha256(b"x" * 100_000).hexdigest(): 100_000}},
            ),
            ("POST", "/v1/submit/s1/commit"): (200, {"timestamp_version": 3, "accepted": True}),
        }
    )
    (tmp_path / "data").mkdir()
    with on_socket(node, tmp_path / "data" / "agent.sock"):
        yield node


@pytest.mark.parametrize("via", ["data", "data/agent.sock"])
def test_everything_is_handed_to_an_agent(
    cli: Cli, fleet: Path, agent: Agent, tmp_path: Path, via: str
) -> None:
    done = cli.ok("publish", fleet, "--via", tmp_path / via, "--json").json
    assert (done["node"], done["timestamp_version"], done["content_bytes"]) == ("cd" * 32, 3, 100_000)
    sent = {
        asked.path.removeprefix("/v1/submit/s1/"): asked.body
        for asked in agent.asked
        if asked.method == "PUT"
    }
    for name, data in repository(fleet).files().items():
        assert sent.pop(f"files/{name}") == data
    assert list(sent.values()) == [b"x" * 100_000]


def test_content_that_the_agent_has_is_not_sent_again(
    cli: Cli, fleet: Path, agent: Agent, tmp_path: Path
) -> None:
    agent.answers["GET", "/v1/submit/s1"] = (200, {"missing": {}})
    cli.ok("publish", fleet, "--via", tmp_path / "data", "--json")
    sent = [asked.path for asked in agent.asked if asked.method == "PUT"]
    assert sent
    assert not [path for path in sent if "/content/" in path]


def test_an_agent_of_another_fleet_is_sent_nothing(
    cli: Cli, fleet: Path, agent: Agent, tmp_path: Path
) -> None:
    agent.answers["GET", "/v1/status"] = (200, {"fleet": "ee" * 32})
    cli.refused(18, "wrong-fleet", "publish", fleet, "--via", tmp_path / "data")
    assert {asked.path for asked in agent.asked} == {"/v1/status"}


def test_a_directory_that_is_behind_the_fleet_is_not_published(
    cli: Cli, fleet: Path, agent: Agent, tmp_path: Path
) -> None:
    status = {"fleet": repository(fleet).fleet_id, "snapshot_version": 99, "timestamp_version": 99}
    agent.answers["GET", "/v1/status"] = (200, status)
    before = snapshot(fleet)
    cli.refused(32, "metadata-replayed", "publish", fleet, "--via", tmp_path / "data")
    assert snapshot(fleet) == before


def test_what_is_nothing_of_it_all_is_refused(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    before = snapshot(fleet)
    good = ticket(fleet, time.time())
    cli.refused(13, "ticket-damaged", "publish", fleet, "--via", good[:-5])
    cli.refused(14, "ticket-expired", "publish", fleet, "--via", ticket(fleet, time.time() - 3600))
    cli.refused(56, "agent-unreachable", "publish", fleet, "--via", tmp_path / "nothing")
    cli.refused(56, "agent-unreachable", "publish", fleet, "--via", tmp_path)
    cli.refused(10, "misuse", "publish", fleet, "--via", "hub@example.org:7700")
    cli.refused(10, "misuse", "publish", fleet, "--via", good, "--timeout", "soon")
    assert snapshot(fleet) == before


def test_a_ticket_of_another_fleet_is_refused(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    cli.ok("fleet", "init", tmp_path / "other", "--no-passphrase")
    cli.refused(18, "wrong-fleet", "publish", fleet, "--via", ticket(tmp_path / "other", time.time()))
