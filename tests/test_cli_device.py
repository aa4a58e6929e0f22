"""``driftseed device``: what an operator says of single devices, and that it is signed and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from support_cli import Cli, snapshot

DEVICE, OTHER = "5a" * 32, "5b" * 32
TICKET = "0d" * 16


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    cli.ok("fleet", "init", tmp_path / "fleet", "--no-passphrase")
    return tmp_path / "fleet"


def states(cli: Cli, fleet: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in cli.ok("device", "list", fleet, "--json").json["devices"]:
        found.setdefault(row["id"], set()).add(row["state"])
    return found


def test_a_device_is_expelled_and_approved_again(cli: Cli, fleet: Path) -> None:
    assert states(cli, fleet) == {}
    said = cli.ok("device", "revoke", fleet, DEVICE, OTHER, "--reason", "stolen from the van")
    assert "driftseed publish" in said.err
    assert states(cli, fleet) == {DEVICE: {"revoked"}, OTHER: {"revoked"}}
    assert "stolen from the van" in cli.ok("device", "list", fleet).out
    cli.ok("device", "approve", fleet, OTHER, "--label", "site=oban", "--expires", "90d")
    assert states(cli, fleet) == {DEVICE: {"revoked"}, OTHER: {"approved"}}
    cli.ok("device", "revoke", fleet, OTHER)
    assert states(cli, fleet)[OTHER] == {"revoked"}
    assert cli.ok("fleet", "verify", fleet, "--json").json["ok"] is True


def test_a_device_gets_other_labels_and_its_own_back(cli: Cli, fleet: Path) -> None:
    cli.ok("device", "relabel", fleet, DEVICE, "ring=canary", "rack=7")
    (row,) = cli.ok("device", "list", fleet, "--json").json["devices"]
    assert row["labels"] == {"ring": "canary", "rack": "7"}
    assert "rack" in cli.ok("fleet", "show", fleet, "--json").json["labels"], "selectors know it"
    cli.refused(10, "misuse", "device", "relabel", fleet, DEVICE, "ring=stable", "--reset")
    cli.ok("device", "relabel", fleet, DEVICE, "--reset")
    assert states(cli, fleet) == {}


def test_a_ticket_is_withdrawn_by_its_id(cli: Cli, fleet: Path) -> None:
    cli.ok("device", "revoke", fleet, "--ticket", TICKET)
    assert states(cli, fleet) == {TICKET: {"revoked"}}
    cli.refused(10, "misuse", "device", "revoke", fleet, "--ticket", "driftseed1abc")


def test_what_a_hub_let_in_is_voided_from_a_time_on(cli: Cli, fleet: Path) -> None:
    cli.ok("device", "revoke", fleet, DEVICE, "--void", "2d")
    cli.ok("device", "revoke", fleet, OTHER, "--void", "all")
    assert states(cli, fleet) == {DEVICE: {"revoked"}, OTHER: {"revoked"}}


def test_what_is_no_device_changes_nothing(cli: Cli, fleet: Path) -> None:
    before = snapshot(fleet)
    cli.refused(10, "misuse", "device", "revoke", fleet, "abc")
    cli.refused(10, "misuse", "device", "relabel", fleet, DEVICE, "ring=" + "x" * 64)
    (fleet / "keys" / "fleet.pem").rename(fleet.parent / "fleet.pem")
    said = cli.refused(19, "not-found", "device", "revoke", fleet, DEVICE)
    assert "role fleet" in said
    (fleet.parent / "fleet.pem").rename(fleet / "keys" / "fleet.pem")
    assert snapshot(fleet) == before
