"""The command itself: help, usage, exit codes, pipes, Ctrl-C, and how soon it is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driftseed import __version__
from support_cli import Cli, run_process
from support_cli_node import FakeNode, on_socket

COMMANDS = [
    ["fleet", "init"], ["fleet", "invite"], ["fleet", "add-hub"], ["fleet", "remove-hub"], ["fleet", "show"],
    ["fleet", "hub-kit"], ["release", "create"], ["release", "list"], ["release", "show"], ["deploy"], ["publish"],
    ["agent", "join"], ["agent", "status"], ["agent", "peers"], ["agent", "overlay"], ["agent", "updates"], ["agent", "config"],
    ["agent", "announce"], ["agent", "update", "show"], ["agent", "update", "remove"], ["status"], ["devices"],
    ["deployments"], ["demo"], ["bench"],
]  # fmt: skip


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_prints_has_json(
    cli: Cli, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "--json" in cli.ok(*command, "--help").out


def test_version(cli: Cli) -> None:
    assert cli.ok("--version").out == f"driftseed {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["fleet", "init"], ["deploy", "d", "r"], ["fleet", "show", "--no"]]
)
def test_a_wrong_command_line_is_2_for_people_and_programs(cli: Cli, arguments: list[str]) -> None:
    for_people = cli(*arguments)
    assert (for_people.code, for_people.out) == (2, "")
    assert "Error: " in for_people.err
    for_programs = cli(*arguments, "--json")
    assert for_programs.code == 2
    assert for_programs.json["error"]["reason"] == "usage"


@pytest.mark.parametrize(
    "command",
    [
        ["fleet", "init", "{file}/fleet", "--no-passphrase"],
        ["fleet", "init", "/proc/none/fleet", "--no-passphrase"],
        ["fleet", "show", "{file}"],
        ["fleet", "hub-kit", "{fleet}", "/proc/none"],
        ["agent", "join", "{ticket}", "--data", "{file}/data"],
        ["agent", "run", "--data", "{file}/data"],
        ["agent", "status", "--data", "{file}/data"],
        ["agent", "status", "--data", "/" + "x" * 200],
        ["devices", "--hub", "{file}"],
    ],
    ids=" ".join,
)
def test_what_the_system_refuses_is_no_traceback(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    file, fleet = tmp_path / "file", tmp_path / "fleet"
    file.touch()
    cli.ok("fleet", "init", fleet, "--no-passphrase")
    hub = f"{'5a' * 32}@127.0.0.1:1"
    ticket = cli.ok("fleet", "invite", fleet, "--hub", hub).out.strip()
    outcome = cli(*(word.format(file=file, fleet=fleet, ticket=ticket) for word in command))
    assert outcome.code >= 10
    assert outcome.err.startswith("error: ")


def test_json_behind_the_dashes_is_an_argument(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("release", "show", tmp_path, "--", "--json", "1")
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")


def test_help_and_completion_come_from_a_process(tmp_path: Path) -> None:
    shown = run_process("--help")
    assert shown.code == 0
    for command in ("fleet", "release", "deploy", "publish", "hub", "agent", "status", "devices", "demo"):
        assert command in shown.out
    completed = run_process(
        environment={"_DRIFTSEED_COMPLETE": "complete_bash", "COMP_WORDS": "driftseed fle", "COMP_CWORD": "1"}
    )
    assert "fleet" in completed.out


def test_help_loads_none_of_the_engines() -> None:
    """Help must be there in 0.3 s: what costs time to import is what is asserted, as a clock would flicker."""
    program = (
        "import sys; from driftseed.cli.main import run; run(['--help']); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])), file=sys.stderr)"
    )
    heavy = [
        "iroh",
        "libtorrent",
        "tuf",
        "securesystemslib",
        "cryptography",
        "aiohttp",
        "asyncio",
        "urllib3",
        "sqlite3",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr.strip() == "[]"


def test_a_running_agent_carries_no_tables() -> None:
    program = (
        "import sys; from driftseed.cli.main import run; run(['agent', 'run', '--listen', 'nowhere']); "
        "print([name for name in sys.modules if name.startswith(('rich', 'http.client'))], file=sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    devices = [{"device": f"{number:064x}", "connected": True} for number in range(3000)]
    node = FakeNode({("GET", "/v1/devices"): (200, {"devices": devices})})
    # Unbuffered, Python loses what a short write leaves over, and never hears that the pipe is closed.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with (
        on_socket(node, tmp_path / "hub.sock"),
        subprocess.Popen(
            [sys.executable, "-m", "driftseed", "devices", "--hub", tmp_path, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_ctrl_c_is_130_and_no_traceback(tmp_path: Path) -> None:
    node = FakeNode({("GET", "/v1/devices"): (200, {"devices": []})})
    with (
        on_socket(node, tmp_path / "hub.sock"),
        subprocess.Popen(
            [sys.executable, "-m", "driftseed", "devices", "--hub", tmp_path, "--watch"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)  # it has asked and shown once: it is waiting now
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert b"Traceback" not in process.stderr.read()


def test_a_prompt_appears_only_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal a person is asked twice, and what is typed is not echoed."""
    master, slave = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "DRIFTSEED_PASSPHRASE"}
    with subprocess.Popen(
        [sys.executable, "-m", "driftseed", "fleet", "init", tmp_path / "f"],
        stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        seen = b""
        for prompt in (b"Passphrase for the new keys", b"The same again"):
            deadline = time.monotonic() + 20
            while prompt not in seen and time.monotonic() < deadline:
                seen += os.read(master, 4096)
            os.write(master, b"sesame\n")
        assert process.wait(timeout=30) == 0
    os.close(master)
    assert b"sesame" not in seen
    assert b"ENCRYPTED" in (tmp_path / "f" / "keys" / "root-1.pem").read_bytes()
