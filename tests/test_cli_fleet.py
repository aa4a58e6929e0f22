"""``driftseed fleet``: what it makes, what it refuses, and what is left on disk either way."""

from __future__ import annotations

import base64
import stat
import time
from pathlib import Path

import pytest

from driftseed.core.ids import FleetId
from driftseed.core.tickets import decode_ticket
from driftseed.trust.admission import TicketSecret, decode_part, open_invitation
from driftseed.trust.hubkit import parse_hub_kit
from driftseed.trust.keys import public_hex
from driftseed.trust.repository import FleetRepository
from support_cli import Cli, run_process, snapshot

HUB = f"{'5a' * 32}@192.0.2.7:7700"
OTHER = f"{'6b' * 32}@[2001:db8::1]:7700;relay=https://relay.example.org"
KEYS = ["deployments", "enrolment", "fleet", "releases", "root-1", "snapshot", "targets", "timestamp"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE", raising=False)
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    directory = tmp_path / "fleet"
    cli.ok("fleet", "init", directory, "--no-passphrase")
    return directory


def repository(directory: Path) -> FleetRepository:
    return FleetRepository.open(directory, lambda _: b"", time.time)


# --- init --------------------------------------------------------------------------------------------


def test_init_makes_a_key_of_each_role_that_only_its_owner_reads(cli: Cli, tmp_path: Path) -> None:
    made = cli.ok("fleet", "init", tmp_path / "f", "--no-passphrase", "--name", "isles", "--json").json
    assert made["keys"] == KEYS
    assert made["offline"] == ["root-1", "targets"]
    assert made["encrypted"] is False
    assert (made["name"], made["fleet"]) == ("isles", repository(tmp_path / "f").fleet_id)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "f" / "keys").iterdir()}
    assert modes == {f"{key}.pem": 0o600 for key in KEYS}
    assert stat.S_IMODE((tmp_path / "f" / "keys").stat().st_mode) == 0o700


def test_init_without_a_passphrase_says_plainly_what_that_means(cli: Cli, tmp_path: Path) -> None:
    outcome = cli.ok("fleet", "init", tmp_path / "f", "--no-passphrase")
    assert "whoever can read these files" in outcome.err
    assert "can sign releases and deployments for the whole fleet" in outcome.err
    assert b"ENCRYPTED" not in (tmp_path / "f" / "keys" / "root-1.pem").read_bytes()


def test_init_says_which_keys_to_take_offline(cli: Cli, tmp_path: Path) -> None:
    outcome = cli.ok(
        "fleet", "init", tmp_path / "f", "--no-passphrase", "--root-keys", "3", "--threshold", "2"
    )
    for key in ("root-1", "root-2", "root-3", "targets"):
        assert str(tmp_path / "f" / "keys" / f"{key}.pem") in outcome.out


def test_init_refuses_to_overwrite_and_leaves_every_byte(cli: Cli, fleet: Path) -> None:
    before = snapshot(fleet)
    cli.refused(17, "would-overwrite", "fleet", "init", fleet, "--no-passphrase")
    assert snapshot(fleet) == before


@pytest.mark.parametrize(("keys", "threshold"), [(1, 2), (0, 0), (3, 0), (17, 1), (-1, -1)])
def test_init_refuses_an_impossible_threshold(cli: Cli, tmp_path: Path, keys: int, threshold: int) -> None:
    said = cli.refused(
        10, "misuse", "fleet", "init", tmp_path / "f", "--no-passphrase",
        f"--root-keys={keys}", f"--threshold={threshold}",
    )  # fmt: skip
    assert "threshold" in said
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_name_that_is_none(cli: Cli, tmp_path: Path) -> None:
    cli.refused(10, "misuse", "fleet", "init", tmp_path / "f", "--no-passphrase", "--name", "my fleet")
    assert list(tmp_path.iterdir()) == []


# --- passphrases -------------------------------------------------------------------------------------


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    outcome = run_process("fleet", "init", tmp_path / "f")
    assert outcome.code == 25
    assert "no terminal" in outcome.err
    assert "DRIFTSEED_PASSPHRASE" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_right_passphrase_opens_the_keys_and_a_wrong_one_changes_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "correct horse")
    fleet = tmp_path / "f"
    assert cli.ok("fleet", "init", fleet, "--json").json["encrypted"] is True
    for key in (fleet / "keys").iterdir():
        assert b"ENCRYPTED PRIVATE KEY" in key.read_bytes()
    cli.ok("fleet", "add-hub", fleet, HUB)
    before = snapshot(fleet)
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "wrong horse")
    for command in (
        ["add-hub", str(fleet), OTHER],
        ["invite", str(fleet)],
        ["hub-kit", str(fleet), str(tmp_path / "kit")],
    ):
        said = cli.refused(15, "passphrase-wrong", "fleet", *command)
        assert "wrong horse" not in said
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE")
    assert snapshot(fleet) == before
    assert not (tmp_path / "kit").exists()
    cli.ok("fleet", "show", fleet)  # needs no key


def test_a_command_that_needs_a_key_fails_clearly_where_nobody_can_be_asked(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "correct horse")
    cli.ok("fleet", "init", tmp_path / "f")
    outcome = run_process("fleet", "add-hub", tmp_path / "f", HUB, "--json")
    assert outcome.code == 25
    assert outcome.json["error"]["reason"] == "passphrase-needed"


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(cli: Cli, fleet: Path) -> None:
    key = fleet / "keys" / "fleet.pem"
    key.chmod(0o644)
    assert f"chmod 600 {key}" in cli.refused(21, "permissions-unsafe", "fleet", "add-hub", fleet, HUB)


# --- invite ------------------------------------------------------------------------------------------


def test_a_ticket_says_what_was_asked_for(cli: Cli, fleet: Path) -> None:
    cli.ok("fleet", "add-hub", fleet, HUB)
    outcome = cli.ok(
        "fleet",
        "invite",
        fleet,
        "--uses",
        "3",
        "--expires",
        "12h",
        "--label",
        "site=glasgow",
        "--label",
        "rack=7",
    )
    assert outcome.out.count("\n") == 1, "nothing but the ticket is on standard output"
    ticket = decode_ticket(outcome.out, time.time())
    found = repository(fleet)
    assert ticket.fleet == found.fleet_id
    assert [hub.device for hub in ticket.hubs] == ["5a" * 32]
    invitation = open_invitation(
        decode_part(ticket.invitation, TicketSecret).invitation,
        frozenset({public_hex(found.enrolment_key())}),
        FleetId(ticket.fleet),
    )
    assert (invitation.uses, invitation.labels) == (3, {"site": "glasgow", "rack": "7"})
    assert 0 < ticket.expires - time.time() <= 12 * 3600
    assert "rack" in found.labels, "selectors know the label from now on"


def test_a_ticket_without_any_hub_is_refused_and_says_how_to_add_one(cli: Cli, fleet: Path) -> None:
    before = snapshot(fleet)
    said = cli.refused(10, "misuse", "fleet", "invite", fleet, "--label", "rack=7")
    assert "driftseed fleet add-hub DIR ADDRESS" in said
    assert snapshot(fleet) == before


def test_a_ticket_may_name_a_hub_of_its_own(cli: Cli, fleet: Path) -> None:
    made = cli.ok("fleet", "invite", fleet, "--hub", OTHER, "--json").json
    assert made["hubs"] == [OTHER]
    assert made["uses"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--expires", "soon"],
        ["--expires", "0s"],
        ["--uses", "0"],
        ["--uses", "1000001"],
        ["--label", "site"],
        ["--label", "site=New York"],
        ["--label", "a=1", "--label", "a=2"],
        ["--hub", "192.0.2.7:7700"],
    ],
)
def test_an_invitation_that_cannot_be_is_refused(cli: Cli, fleet: Path, arguments: list[str]) -> None:
    cli.ok("fleet", "add-hub", fleet, HUB)
    before = snapshot(fleet)
    cli.refused(10, "misuse", "fleet", "invite", fleet, *arguments)
    assert snapshot(fleet) == before


# --- hubs --------------------------------------------------------------------------------------------


def test_a_hub_is_added_replaced_and_removed(cli: Cli, fleet: Path) -> None:
    assert cli.ok("fleet", "add-hub", fleet, HUB, "--json").json == {
        "hub": HUB,
        "device": "5a" * 32,
        "added": True,
    }
    cli.ok("fleet", "add-hub", fleet, OTHER)
    moved = f"{'5a' * 32}@192.0.2.8:7701"
    assert cli.ok("fleet", "add-hub", fleet, moved, "--json").json["added"] is False
    shown = cli.ok("fleet", "show", fleet).out
    assert moved in shown
    assert HUB not in shown
    cli.ok("fleet", "remove-hub", fleet, "5a" * 32)
    cli.ok("fleet", "remove-hub", fleet, OTHER)
    assert repository(fleet).hubs() == ()
    cli.refused(19, "not-found", "fleet", "remove-hub", fleet, OTHER)


def test_a_host_name_is_resolved_and_that_is_said(cli: Cli, fleet: Path) -> None:
    outcome = cli.ok("fleet", "add-hub", fleet, f"{'5a' * 32}@localhost:7700")
    assert "localhost is " in outcome.err
    (hub,) = repository(fleet).hubs()
    assert "127.0.0.1:7700" in hub.addrs
    assert hub.relay == "http://localhost:7700"


def test_an_address_that_is_none_is_refused(cli: Cli, fleet: Path) -> None:
    assert "DEVICEID@HOST:PORT" in cli.refused(10, "misuse", "fleet", "add-hub", fleet, "hub.example.org")


def test_a_hub_kit_holds_what_a_hub_needs_and_no_more(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    path = tmp_path / "hub.kit"
    outcome = cli.ok("fleet", "hub-kit", fleet, path)
    assert "WITHOUT a passphrase" in outcome.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kit = parse_hub_kit(path.read_bytes())
    found = repository(fleet)
    assert (kit.fleet, kit.name, kit.first_root) == (found.fleet_id, found.name, found.first_root)
    assert kit.enrolment_key == public_hex(found.enrolment_key())
    assert public_hex(kit.timestamp_key()) == public_hex(found.private_key("timestamp"))
    for name in set(KEYS) - {"timestamp"}:
        secret = found.private_key(name).private_bytes_raw()
        assert secret.hex() not in path.read_text()
        assert base64.b64encode(secret).decode()[:-2] not in path.read_text()


def test_a_hub_kit_overwrites_nothing(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    path = tmp_path / "hub.kit"
    path.write_text("precious")
    cli.refused(17, "would-overwrite", "fleet", "hub-kit", fleet, path)
    assert path.read_text() == "precious"
    (tmp_path / "link").symlink_to("nowhere")
    cli.refused(17, "would-overwrite", "fleet", "hub-kit", fleet, tmp_path / "link")
    cli.refused(19, "not-found", "fleet", "hub-kit", fleet, tmp_path / "no" / "such" / "kit")


# --- show --------------------------------------------------------------------------------------------


def test_show_says_when_each_role_expires(cli: Cli, fleet: Path) -> None:
    shown = cli.ok("fleet", "show", fleet, "--json").json
    assert set(shown["metadata"]) == {
        "root", "timestamp", "snapshot", "targets", "releases", "deployments", "fleet",
    }  # fmt: skip
    for role in shown["metadata"]:
        assert role in cli.ok("fleet", "show", fleet).out


def test_what_is_no_fleet_is_said_to_be_none(cli: Cli, tmp_path: Path) -> None:
    assert "driftseed fleet init" in cli.refused(19, "not-found", "fleet", "show", tmp_path)


def test_a_damaged_fleet_is_refused(cli: Cli, fleet: Path) -> None:
    (fleet / "fleet.json").write_text("{")
    cli.refused(80, "store-damaged", "fleet", "show", fleet)
