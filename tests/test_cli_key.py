"""``driftseed key``, ``root`` and ``fleet verify`` as people use them: on several machines, with nothing online."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support_cli import Cli, snapshot


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE", raising=False)
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    directory = tmp_path / "fleet"
    cli.ok("fleet", "init", directory, "--no-passphrase", "--root-keys", "2", "--threshold", "2")
    return directory


def keys_of(cli: Cli, fleet: Path, role: str) -> list[dict[str, object]]:
    return [each for each in cli.ok("key", "list", fleet, "--json").json["keys"] if each["role"] == role]


def test_the_list_says_what_is_where(cli: Cli, fleet: Path) -> None:
    (fleet / "keys" / "root-2.pem").rename(fleet.parent / "root-2.pem")
    here = [each["here"] for each in keys_of(cli, fleet, "root")]
    assert here == [True, False]
    shown = cli.ok("key", "list", fleet).out
    assert "file:keys/releases.pem" in shown
    assert "2 of 2" in shown
    assert len(cli.ok("key", "list", fleet, "--json").json["keys"]) == 9


def test_a_key_is_replaced_and_the_old_file_is_worth_nothing(cli: Cli, fleet: Path) -> None:
    (before,) = keys_of(cli, fleet, "releases")
    done = cli.ok("key", "rotate", fleet, "releases", "--no-passphrase", "--json").json
    assert done["in_force"] is True
    (after,) = keys_of(cli, fleet, "releases")
    assert after["key"] != before["key"]
    assert after["uri"] == "file:keys/releases-1.pem"
    (fleet / "keys" / "releases.pem").unlink()
    cli.ok("fleet", "renew", fleet, "releases")
    assert cli.ok("fleet", "verify", fleet, "--json").json["ok"] is True


def test_keys_are_added_and_withdrawn(cli: Cli, fleet: Path) -> None:
    (old,) = keys_of(cli, fleet, "deployments")
    cli.ok("key", "create", fleet, "deployments", "--no-passphrase")
    assert len(keys_of(cli, fleet, "deployments")) == 2
    cli.ok("key", "revoke", fleet, "deployments", str(old["key"])[:16])
    (left,) = keys_of(cli, fleet, "deployments")
    said = cli.refused(10, "misuse", "key", "revoke", fleet, "deployments", str(left["key"]))
    assert "--replace-with" in said
    cli.refused(19, "not-found", "key", "revoke", fleet, "deployments", "ffff")
    cli.refused(10, "misuse", "key", "rotate", fleet, "nonsense", "--no-passphrase")


def test_a_key_made_elsewhere_is_named_by_its_public_half(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    made = cli.ok("key", "create", "--out", tmp_path / "ci.pem", "--no-passphrase", "--json").json
    assert (tmp_path / "ci.pem").stat().st_mode & 0o777 == 0o600
    # Its first signature is needed to hand the role over, so the private half must be here or brought.
    said = cli.refused(19, "not-found", "key", "rotate", fleet, "releases", "--key", tmp_path / "ci.pem.pub")
    assert "role releases" in said
    cli.ok(
        "key", "rotate", fleet, "releases", "--key", tmp_path / "ci.pem.pub", "--with", tmp_path / "ci.pem"
    )
    (row,) = keys_of(cli, fleet, "releases")
    assert row["key"] == made["key"]
    cli.refused(17, "would-overwrite", "key", "create", "--out", tmp_path / "ci.pem", "--no-passphrase")
    cli.refused(10, "misuse", "key", "create", "--no-passphrase")


def test_people_on_different_machines_sign_a_root_one_after_the_other(
    cli: Cli, fleet: Path, tmp_path: Path
) -> None:
    ann, bob = tmp_path / "ann", tmp_path / "bob"
    for person, key in ((ann, "root-1.pem"), (bob, "root-2.pem")):
        person.mkdir()
        shutil.move(fleet / "keys" / key, person / key)
    waiting = cli.ok("key", "rotate", fleet, "timestamp", "--no-passphrase", "--json").json
    assert waiting["in_force"] is False
    assert [one["wanting"] for one in waiting["missing"]] == [2, 2]
    assert cli.ok("root", "status", fleet, "--json").json["complete"] is False

    letter = tmp_path / "next-root.json"
    cli.ok("root", "export", fleet, letter)
    cli.refused(17, "would-overwrite", "root", "export", fleet, letter)
    # Ann's machine has neither the fleet's directory nor a network.
    said = cli.ok("root", "sign", letter, "--key", ann / "root-1.pem").out
    assert "timestamp: key" in said
    assert "is removed" in said
    assert "missing: 1" in said
    assert cli.ok("root", "import", fleet, letter, "--json").json["in_force"] is False
    assert "1 of 2 have signed" in cli.ok("root", "status", fleet).out
    cli.ok("root", "sign", letter, "--key", bob / "root-2.pem")
    assert cli.ok("root", "import", fleet, letter, "--json").json["in_force"] is True
    (row,) = keys_of(cli, fleet, "timestamp")
    assert row["uri"] == "file:keys/timestamp-1.pem"
    cli.refused(19, "not-found", "root", "status", fleet)


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"format": 1}', '{"fleet": "x"}', "[" * 100_000],
    ids=["empty", "cut", "bare", "odd", "deep"],
)
def test_a_letter_that_is_none_is_refused(cli: Cli, fleet: Path, tmp_path: Path, damage: str) -> None:
    letter = tmp_path / "letter.json"
    letter.write_text(damage)
    key = fleet / "keys" / "root-1.pem"
    cli.refused(10, "misuse", "root", "sign", letter, "--key", key)
    cli.refused(10, "misuse", "root", "status", letter)
    assert letter.read_text() == damage


def test_a_proposal_is_given_up_without_a_trace(cli: Cli, fleet: Path) -> None:
    before = snapshot(fleet / "metadata")
    (fleet / "keys" / "root-2.pem").rename(fleet.parent / "root-2.pem")
    cli.ok("fleet", "renew", fleet, "root")
    cli.refused(22, "conflict", "fleet", "renew", fleet, "root")
    cli.ok("root", "cancel", fleet)
    assert snapshot(fleet / "metadata") == before


def test_a_team_gets_paths_of_its_own(cli: Cli, fleet: Path, tmp_path: Path) -> None:
    cli.ok("key", "delegate", fleet, "camera", "--paths", "releases/camera/*/*", "--no-passphrase")
    (tmp_path / "firmware.bin").write_bytes(b"camera")
    cli.ok(
        "release",
        "create",
        fleet,
        "camera",
        "1.0",
        "--artifact",
        tmp_path / "firmware.bin",
        "--module",
        "single-file",
        "--meta",
        "path=x",
    )
    found = cli.ok("fleet", "verify", fleet, "--json").json
    teams = {one["role"]: one for one in found["roles"]}
    assert teams["camera"]["targets"] == 3
    assert teams["releases"]["targets"] == 0
    assert "alone signs releases under releases/camera/*/*" in teams["camera"]["means"]
    cli.refused(10, "misuse", "key", "delegate", fleet, "camera", "--paths", "fleet/*", "--no-passphrase")
    cli.ok("deploy", fleet, "camera", "--to", "all")
    cli.refused(22, "conflict", "key", "delegate", fleet, "camera", "--remove")


def test_verify_says_in_words_what_each_role_may_do_and_fails_on_what_is_broken(
    cli: Cli, fleet: Path, tmp_path: Path
) -> None:
    (tmp_path / "app.bin").write_bytes(b"app")
    cli.ok(
        "release",
        "create",
        fleet,
        "app",
        "1.0",
        "--artifact",
        tmp_path / "app.bin",
        "--module",
        "single-file",
        "--meta",
        "path=x",
    )
    said = cli.ok("fleet", "verify", fleet).out
    assert "makes no device install anything" in said
    assert "all of it holds" in said
    (content,) = (fleet / "content").iterdir()
    content.write_bytes(b"bad")
    outcome = cli("fleet", "verify", fleet)
    assert outcome.code == 80
    assert "is not the signed file" in outcome.err
    outcome = cli("fleet", "verify", fleet, "--json")
    assert outcome.code == 80
    assert outcome.json["ok"] is False
