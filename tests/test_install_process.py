"""Commands that must end: with their time, with their agent, with everything that they started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from driftseed.core import limits
from driftseed.install.process import Outcome, Tail, run, scrubbed_environment


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


async def sh(place: Path, script: str, *, timeout_s: float = 20.0) -> Outcome:
    return await run(
        ["sh", "-c", script],
        directory=place,
        environment=scrubbed_environment({"MARK": str(place)}),
        timeout_s=timeout_s,
        lock=place / "lock",
    )


def processes(place: Path) -> list[int]:
    """Those whose environment has this test's mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"MARK={place}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


async def test_status_and_output_come_back(place: Path) -> None:
    outcome = await sh(place, "echo out; echo err >&2; exit 3")
    assert (outcome.status, outcome.stdout) == (3, "out")
    assert sorted(outcome.output.split()) == ["err", "out"]


async def test_a_signal_is_told_apart(place: Path) -> None:
    assert (await sh(place, "kill -TERM $$")).status == -signal.SIGTERM


async def test_a_program_that_is_not_there_is_said(place: Path) -> None:
    outcome = await run(
        ["/no/such/program"],
        directory=place,
        environment=scrubbed_environment({}),
        timeout_s=20,
        lock=place / "lock",
    )
    assert outcome.status == 127
    assert "/no/such/program" in outcome.output


@pytest.mark.parametrize(
    "script",
    [
        "READY; sleep 1000",
        "trap '' TERM INT HUP; READY; while :; do sleep 1000; done",
        "sleep 1000 & setsid sleep 1000 & READY; wait",
        "(setsid sh -c 'sleep 1000 & exec env -i sleep 1000' &) ; READY; sleep 1000",  # a daemon, unmarked
        "(( (sleep 1000 &) &) &) ; READY; sleep 1000",
        "READY; kill -STOP $$",
        "i=0; while [ $i -lt 50 ]; do (setsid sleep 1000 &); i=$((i+1)); done; READY; sleep 1000",
        # It goes on starting processes while they are looked for.
        "READY; while :; do (setsid sleep 1000 &); done",
    ],
)
async def test_a_command_that_hangs_is_killed_with_all_its_children(script: str, place: Path) -> None:
    started = place / "started"
    os.mkfifo(started)
    task = asyncio.create_task(sh(place, script.replace("READY", f"echo > {started}")))
    await asyncio.to_thread(started.read_bytes)
    assert processes(place)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes(place) == []
    assert (place / "lock").read_bytes() == b""


async def test_a_command_that_takes_too_long_is_killed_and_its_output_kept(place: Path) -> None:
    outcome = await sh(place, "echo begun; setsid sleep 1000 & sleep 1000", timeout_s=1.0)
    assert outcome.status is None
    assert outcome.output == "begun"
    assert processes(place) == []


async def test_a_service_that_a_command_starts_lives_on(place: Path) -> None:
    """A module may start what it installed; its open output keeps nobody waiting."""
    outcome = await sh(place, "setsid sleep 1000 & echo $!")
    assert outcome.status == 0
    assert processes(place) == [int(outcome.stdout)]
    # The next command is not held up by it, and does not take it for a leftover.
    assert (await sh(place, "true")).status == 0
    assert processes(place) == [int(outcome.stdout)]
    os.kill(int(outcome.stdout), signal.SIGKILL)


_AGENT = """
import asyncio, sys
from pathlib import Path
from driftseed.install.process import run, scrubbed_environment
place = Path(sys.argv[1])
asyncio.run(run(["sh", "-c", sys.argv[2]], directory=place, timeout_s=100,
    environment=scrubbed_environment({"MARK": str(place)}), lock=place / "lock"))
"""


def agent(place: Path, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _AGENT, place, script])


async def after_kill(place: Path, kill: Callable[[subprocess.Popen[bytes]], None]) -> None:
    """Start an agent with a command that leaves a trace when it goes on, kill, and run the next command."""
    started = place / "started"
    os.mkfifo(started)
    script = f"echo > {started}; sleep 1000; echo went on > {place}/trace"
    killed = agent(place, f"({script}) & wait")
    try:
        await asyncio.to_thread(started.read_bytes)
        kill(killed)
        outcome = await sh(place, "echo next")
        assert (outcome.status, outcome.stdout) == (0, "next")
        assert processes(place) == []
        assert not (place / "trace").exists()
    finally:
        killed.kill()
        killed.wait()


async def test_what_a_killed_agent_ran_is_over_before_the_next_begins(place: Path) -> None:
    def kill(killed: subprocess.Popen[bytes]) -> None:
        killed.kill()
        killed.wait()

    await after_kill(place, kill)


async def test_what_a_killed_launcher_left_is_found_by_its_mark(place: Path) -> None:
    """Somebody kills the agent and its helper; the module's children have no parent left that minds them."""

    def kill(killed: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        killed.kill()
        for launcher in children:
            os.kill(int(launcher), signal.SIGKILL)
        killed.wait()

    await after_kill(place, kill)


async def test_commands_with_one_lock_run_one_after_the_other(place: Path) -> None:
    script = "mkdir busy || exit 9; sleep 0.05; rmdir busy"
    outcomes = await asyncio.gather(*(sh(place, script) for _ in range(4)))
    assert [outcome.status for outcome in outcomes] == [0, 0, 0, 0]


async def test_output_is_bounded_and_its_end_is_kept(place: Path) -> None:
    outcome = await sh(place, "head -c 5000000 /dev/zero | tr '\\0' x; echo the end")
    assert len(outcome.output) <= limits.MODULE_OUTPUT_BYTES_MAX
    assert outcome.output.endswith("the end")
    assert (await sh(place, "yes", timeout_s=0.3)).status is None


async def test_nothing_of_the_agent_is_in_a_commands_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "hunter2")
    monkeypatch.setenv("LD_PRELOAD", "")
    names = {line.split("=")[0] for line in (await sh(place, "env")).stdout.splitlines()}
    assert names == {"PATH", "LANG", "MARK", "PWD", "DRIFTSEED_CALL"}


async def test_a_command_has_no_more_than_it_needs(place: Path) -> None:
    outcome = await sh(
        place,
        "umask; ulimit -c; grep NoNewPrivs /proc/self/status; ls /proc/self/fd; readlink /proc/self/fd/0",
    )
    lines = outcome.stdout.split()
    assert lines[:4] == ["0022", "0", "NoNewPrivs:", "1"]
    assert lines[4:] == ["0", "1", "2", "3", "/dev/null"]  # 3 is ls reading the directory
    session = await sh(place, "echo $$; cut -d' ' -f6 /proc/$$/stat")
    assert len(set(session.stdout.split())) == 1


def test_a_tail_keeps_the_last_bytes() -> None:
    tail = Tail(4)
    for data in (b"ab", b"cdef", b"\xff"):
        tail.add(data)
    assert tail.dropped == 3
    assert tail.text == "def\\xff"


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def test_no_descriptor_stays_open(place: Path) -> None:
    await sh(place, "true")
    before = descriptors()
    for _ in range(3):
        await sh(place, "true")
        await sh(place, "sleep 1000", timeout_s=0.05)
    with pytest.raises(FileNotFoundError):
        await sh(place / "gone", "true")
    assert descriptors() == before
