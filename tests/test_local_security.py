"""What other users of a device can do to an agent: permissions, links, and where its secrets might be seen."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core.errors import UnsafePermissions
from driftseed.core.lifecycle import State
from driftseed.node.home import IDENTITY_FILE, MEMBERSHIP_FILE, Home
from driftseed.store.files import write_secret
from driftseed.trust.kept import KeptFiles
from support_fleet import fleet_in, settled

FLEET = "f1" * 32
PASSPHRASE = "correct horse battery staple 7341"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
def test_a_data_directory_that_others_can_write_is_refused_with_the_mend(tmp_path: Path, mode: int) -> None:
    """Who can write there can put their own key in the place of the device's."""
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(UnsafePermissions) as refused:
        Home(directory).create()
    assert f"chmod 700 {directory}" in refused.value.hint
    assert list(directory.iterdir()) == []
    directory.chmod(0o755)
    Home(directory).create()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_data_directory_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(UnsafePermissions, match="user 65534"):
        Home(directory).create()


@pytest.mark.parametrize("name", [IDENTITY_FILE, MEMBERSHIP_FILE])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_key_and_membership_that_others_can_read_or_write_are_refused(
    tmp_path: Path, name: str, mode: int
) -> None:
    home = Home(tmp_path / "data")
    home.create()
    path = home.directory / name
    write_secret(path, bytes(32))
    path.chmod(mode)
    with pytest.raises(UnsafePermissions) as refused:
        home.identity() if name == IDENTITY_FILE else home.record()
    assert refused.value.hint == f"chmod 600 {path}"
    assert path.read_bytes() == bytes(32)


def test_links_in_the_data_directory_are_replaced_and_not_followed(tmp_path: Path) -> None:
    """A link in the place of a file that is written leads nowhere: its target stays what it was."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    kept = KeptFiles(tmp_path / "trust", FLEET)
    for name in ("index.json", "floor.json"):
        (tmp_path / "trust" / name).symlink_to(victim)
    kept.commit({"metadata/timestamp.json": kept.keep(b"{}")})
    kept.raise_floor(3, ["key"])
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "trust/index.json").is_symlink()
    assert not (tmp_path / "trust/floor.json").is_symlink()


PROBE = r"""#!/bin/sh
cat /proc/self/status > "$OUT/status"
tr '\0' '\n' < /proc/self/environ > "$OUT/environ"
ls -l /proc/self/fd > "$OUT/fds"
ulimit -c > "$OUT/core"
umask > "$OUT/umask"
ps -o sid= -p $$ > "$OUT/session" 2>/dev/null || cut -d' ' -f6 /proc/$$/stat > "$OUT/session"
"""


async def test_a_module_gets_no_secret_no_descriptor_and_no_privileges_of_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signed script sees of the agent that runs it: nothing that it was not given."""
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", PASSPHRASE)
    out = tmp_path / "out"
    out.mkdir()
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        script = tmp_path / "probe.sh"
        script.write_text(PROBE.replace("$OUT", str(out)))
        deployment = fleet.release("probe", "1.0", [str(script)], module="script")
        await fleet.publish()
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        secret = agent.identity.secret
    seen = {path.name: path.read_text() for path in out.iterdir()}
    assert "NoNewPrivs:\t1" in seen["status"]
    assert seen["core"].strip() == "0"
    assert seen["umask"].strip() == "0022"
    assert int(seen["session"]) != os.getsid(0)
    assert PASSPHRASE not in seen["environ"]
    assert secret.hex() not in seen["environ"]
    names = {line.split("=")[0] for line in seen["environ"].splitlines() if "=" in line}
    assert not {"HOME", "USER", "SSH_AUTH_SOCK", "VIRTUAL_ENV"} & names, names
    for line in seen["fds"].splitlines():
        target = line.partition(" -> ")[2]
        assert not target.startswith(str(tmp_path / "agent")), f"an open file of the agent's: {line}"
        assert "socket:" not in target, f"a socket of the agent's: {line}"


# --- secrets -----------------------------------------------------------------------------------------


class Flow:
    """Commands as a person gives them, each a process; what was ever on a command line is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said = b""
        self.command_lines: set[bytes] = set()
        self.running: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        return {**os.environ, "DRIFTSEED_PASSPHRASE": PASSPHRASE, "NO_COLOR": "1"}

    def run(self, *arguments: str, given: bytes = b"", secret: bool = False) -> bytes:
        process = subprocess.Popen(
            [sys.executable, "-m", "driftseed", *arguments],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(given, timeout=120)
        assert process.returncode == 0, err.decode()
        self.said += err if secret else out + err
        return out

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "driftseed", *arguments],
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.running.append(process)
        return process

    def look(self) -> None:
        """Note the command lines of all that was started here, and of what that has started."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                self.command_lines.add(Path(f"/proc/{pid}/cmdline").read_bytes())

    def _family(self) -> Iterator[int]:
        pending = [process.pid for process in self.running]
        while pending:
            pid = pending.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pending += [int(each) for each in children.read_text().split()]

    def stop(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            if process.stdout is not None:
                process.stdout.close()
            process.wait(60)


def test_secrets_are_in_no_log_command_line_report_or_answer(tmp_path: Path) -> None:
    """Passphrase, ticket and private keys, through a whole update as a person does it."""
    flow = Flow(tmp_path)
    try:
        flow.run("fleet", "init", "F", "--name", "demo")
        flow.run("fleet", "hub-kit", "F", "kit")
        hub = flow.start(
            "hub",
            "hub",
            "run",
            "--kit",
            "kit",
            "--data",
            "H",
            "--listen",
            "127.0.0.1:0",
            "--log-level",
            "debug",
        )
        assert hub.stdout is not None
        ready = hub.stdout.readline().decode()
        address = re.sub(r"^.*?: ", "", ready).strip()
        flow.run("fleet", "add-hub", "F", address)
        ticket = flow.run("fleet", "invite", "F", "--uses", "5", secret=True)
        flow.run("agent", "join", "-", "--data", "A", given=ticket)
        flow.start("agent", "agent", "run", "--data", "A", "--listen", "127.0.0.1:0", "--log-level", "debug")
        (tmp_path / "app.bin").write_bytes(os.urandom(100_000))
        flow.run(
            "release", "create", "F", "app", "1.0", "--artifact", "app.bin", "--module", "single-file",
            "--meta", "path=app.bin",
        )  # fmt: skip
        flow.run("deploy", "F", "app", "--to", "all")
        flow.run("publish", "F", "--via", "-", given=ticket)
        deadline = time.monotonic() + 60
        while b"succeeded" not in flow.run("agent", "updates", "--data", "A", "--json"):
            flow.look()
            assert time.monotonic() < deadline, (tmp_path / "agent.log").read_text()[-2000:]
        for command in ("status", "peers", "overlay", "config"):
            with contextlib.suppress(AssertionError):
                flow.run("agent", command, "--data", "A", "--json")
        flow.run("devices", "--hub", "H")
        flow.look()
    finally:
        flow.stop()

    kit = json.loads((tmp_path / "kit").read_bytes())
    text = b"".join(ticket.split())
    secrets = {
        "the passphrase": PASSPHRASE.encode(),
        "the ticket": text[40:120],
        "the device's key": (tmp_path / "A" / IDENTITY_FILE).read_bytes()[:32],
        "the timestamp key": bytes.fromhex(kit["timestamp"]),
    }
    places: dict[str, bytes] = {"said": flow.said, "command lines": b"\n".join(sorted(flow.command_lines))}
    for path in [
        tmp_path / "hub.log",
        tmp_path / "agent.log",
        *(tmp_path / "A").rglob("*"),
        *(tmp_path / "H").rglob("*"),
    ]:
        if (
            path.is_file()
            and not path.is_symlink()
            and path.name not in {IDENTITY_FILE, "kit", "hub-kit.json"}
        ):
            places[str(path.relative_to(tmp_path))] = path.read_bytes()
    assert len(flow.command_lines) >= 2
    assert places["agent.log"]
    for what, secret in secrets.items():
        for spelling in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")):
            for where, data in places.items():
                if what == "the timestamp key" and where.startswith("H/"):
                    continue  # a hub keeps it to renew the timestamp, in files of mode 0600
                assert spelling not in data, f"{what} is in {where}"
