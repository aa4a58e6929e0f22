"""Secrets that commands are given: files of the wrong owner, mode or kind are refused, and ``ps`` shows nothing."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from driftseed.core import limits
from driftseed.core.errors import NotFound, UnsafePermissions, WouldOverwrite
from driftseed.core.tickets import decode_ticket
from driftseed.store.files import create_secret, read_secret, write_secret
from support_cli import Cli, run_process, snapshot

HUB = f"{'ab' * 32}@127.0.0.1:1"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in [name for name in os.environ if name.startswith("DRIFTSEED_")]:
        monkeypatch.delenv(name)
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    cli.ok("fleet", "init", tmp_path / "fleet", "--no-passphrase")
    cli.ok("fleet", "add-hub", tmp_path / "fleet", HUB)
    return tmp_path / "fleet"


# --- making one --------------------------------------------------------------------------------------


def test_a_ticket_is_written_for_its_owner_alone_and_not_printed(
    cli: Cli, fleet: Path, tmp_path: Path
) -> None:
    """Whatever the umask says, and in no output that a log might keep."""
    before = os.umask(0)
    try:
        said = cli.ok("fleet", "invite", fleet, "--out", tmp_path / "ticket")
        answer = cli.ok("fleet", "invite", fleet, "--out", tmp_path / "other", "--json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ticket").stat().st_mode) == 0o600
    text = (tmp_path / "ticket").read_text()
    assert decode_ticket(text, 0.0).hubs[0].device == "ab" * 32
    assert text.strip() not in said.out + said.err
    assert answer.json["file"] == str(tmp_path / "other")
    assert answer.json["ticket"] is None
    assert cli.ok("fleet", "invite", fleet, "--json").json["file"] is None


@pytest.mark.parametrize("what", ["file", "link", "dangling link", "directory"])
def test_a_ticket_replaces_nothing(cli: Cli, fleet: Path, tmp_path: Path, what: str) -> None:
    """A link in the place of the file would have the ticket written where somebody else reads it."""
    victim, out = tmp_path / "victim", tmp_path / "ticket"
    if what == "directory":
        out.mkdir()
    elif what == "file":
        out.write_text("precious")
    else:
        if what == "link":
            victim.write_text("precious")
        out.symlink_to(victim)
    before = snapshot(tmp_path)
    cli.refused(17, "would-overwrite", "fleet", "invite", fleet, "--label", "site=oban", "--out", out)
    assert snapshot(tmp_path) == before, "nothing was signed, nothing written"
    with pytest.raises(WouldOverwrite):
        create_secret(out, b"secret")
    assert snapshot(tmp_path) == before


def test_a_ticket_into_a_directory_that_is_not_there_is_refused_before_anything_is_signed(
    cli: Cli, fleet: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    cli.refused(
        19, "not-found", "fleet", "invite", fleet, "--label", "site=oban", "--out", tmp_path / "none" / "t"
    )
    assert snapshot(tmp_path) == before
    with pytest.raises(NotFound):
        create_secret(tmp_path / "none" / "t", b"secret")


def test_a_secret_that_cannot_be_written_whole_is_not_left_in_part() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        create_secret(Path("/dev/full/ticket"), b"secret")


# --- using one ---------------------------------------------------------------------------------------


def _readable(path: Path) -> None:
    path.chmod(0o640)


def _writable(path: Path) -> None:
    path.chmod(0o602)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _anothers(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


TRICKS = [
    pytest.param(_readable, "chmod 600", id="readable by the group"),
    pytest.param(_writable, "chmod 600", id="writable by others"),
    pytest.param(_link, "name the file itself", id="a symbolic link"),
    pytest.param(_pipe, "name a regular file", id="a pipe that nobody writes to"),
    pytest.param(_anothers, "chown", id="another user's", marks=[pytest.mark.root, as_root]),
]
Trick = Callable[[Path], None]


@pytest.mark.parametrize(("trick", "mend"), TRICKS)
def test_a_ticket_file_that_others_have_a_hand_in_is_refused_with_the_mend(
    cli: Cli, fleet: Path, tmp_path: Path, trick: Trick, mend: str
) -> None:
    """By everything that takes a ticket; nothing is made of it, and the file stays as it is."""
    path = tmp_path / "ticket"
    cli.ok("fleet", "invite", fleet, "--out", path)
    trick(path)
    before = snapshot(tmp_path)
    joining = cli.refused(21, "permissions-unsafe", "agent", "join", f"@{path}", "--data", tmp_path / "data")
    publishing = cli.refused(21, "permissions-unsafe", "publish", fleet, "--via", f"@{path}")
    assert f"hint: {mend}" in joining
    assert f"hint: {mend}" in publishing
    assert not (tmp_path / "data").exists()
    if not path.is_fifo():
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("trick", "mend"), TRICKS)
def test_other_secret_files_that_others_have_a_hand_in_are_refused_with_the_mend(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: Trick, mend: str
) -> None:
    """Hub kit, passphrase, PIN, API token, private key."""
    unsafe = (21, "permissions-unsafe")
    for name in ("kit", "passphrase", "token"):
        write_secret(tmp_path / name, b"correct horse battery")
        trick(tmp_path / name)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
        if trick is _link:
            write_secret(tmp_path / "elsewhere", b"correct horse battery")
    cli.ok("key", "create", "--out", tmp_path / "key.pem", "--no-passphrase")
    trick(tmp_path / "key.pem")

    kit = run_process(
        "hub", "run", "--kit", tmp_path / "kit", "--data", tmp_path / "H", "--listen", "127.0.0.1:0"
    )
    assert (kit.code, mend in kit.err) == (21, True), kit.err
    said = cli.refused(*unsafe, "status", "--hub", "http://127.0.0.1:1", "--token", f"@{tmp_path / 'token'}")
    assert mend in said
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert mend in cli.refused(*unsafe, "fleet", "init", tmp_path / "F")
    assert not (tmp_path / "F").exists()
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE_FILE")
    if trick is not _pipe:  # a public key may be read from anything
        cli.ok("fleet", "init", tmp_path / "F", "--no-passphrase")
        named = ("key", "rotate", tmp_path / "F", "releases", "--key", tmp_path / "key.pem")
        assert mend in cli.refused(*unsafe, *named)


@pytest.mark.root
@as_root
def test_root_takes_files_of_the_user_who_called_sudo_and_of_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in /tmp must not make root's agent a member of a stranger's fleet."""
    path = tmp_path / "ticket"
    write_secret(path, b"ticket")
    os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("SUDO_UID", "1000")
    with pytest.raises(UnsafePermissions, match="another user"):
        read_secret(path)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert read_secret(path) == b"ticket"


def test_a_secret_may_come_through_a_pipe_of_the_shells(tmp_path: Path) -> None:
    """``--kit <(decrypt kit)``: what was never on the disk is as private as a file."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"from a pipe")
    try:
        assert read_secret(Path(f"/dev/fd/{reading}")) == b"from a pipe"
    finally:
        os.close(reading)


def test_of_an_endless_file_no_more_is_read_than_a_ticket_may_have(cli: Cli, tmp_path: Path) -> None:
    write_secret(tmp_path / "ticket", b"")
    os.truncate(tmp_path / "ticket", 2**40)
    cli.refused(13, "ticket-damaged", "agent", "join", f"@{tmp_path / 'ticket'}", "--data", tmp_path / "data")
    assert len(read_secret(tmp_path / "ticket", size=2 * limits.TICKET_BYTES_MAX)) < 2**17


def test_a_passphrase_file_opens_the_keys_and_an_empty_one_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret(tmp_path / "passphrase", b"correct horse\n")
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    cli.ok("fleet", "init", tmp_path / "F")
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE_FILE")
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "correct horse")
    cli.ok("fleet", "add-hub", tmp_path / "F", HUB)
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE")
    write_secret(tmp_path / "passphrase", b"\n")
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    cli.refused(10, "misuse", "fleet", "init", tmp_path / "G")
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE_FILE", str(tmp_path / "none"))
    cli.refused(19, "not-found", "fleet", "init", tmp_path / "G")
    assert not (tmp_path / "G").exists()


# --- the list of processes ---------------------------------------------------------------------------


def at_a_terminal(*arguments: str | Path) -> tuple[int, str]:
    """A command whose standard error is a terminal; its status and what it wrote there."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTSEED_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "driftseed", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # EIO: the other end is closed
        while data := os.read(ours, 4096):
            said += data
    os.close(ours)
    return process.wait(30), said.decode()


def test_a_secret_on_the_command_line_is_warned_of_at_a_terminal_and_a_file_is_not(tmp_path: Path) -> None:
    write_secret(tmp_path / "ticket", b"driftseed1AAAA\n")
    join = ("agent", "join", "--data", tmp_path / "data")
    status, said = at_a_terminal(*join, "driftseed1AAAA")
    assert status == 13
    assert said.count("warning: ") == 1
    assert "command line" in said.splitlines()[0]
    assert "@FILE" in said.splitlines()[0]
    status, said = at_a_terminal(*join, f"@{tmp_path / 'ticket'}")
    assert (status, "warning" in said) == (13, False)
    assert "warning" not in run_process(*join, "driftseed1AAAA").err, "for people only"
    status, said = at_a_terminal("status", "--hub", "http://127.0.0.1:1", "--token", "0123456789abcdef")
    assert (status, said.count("warning: ")) == (56, 1)
