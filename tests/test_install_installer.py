"""The installer against Mender's documented orders of calls: every state fails once, and is killed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driftseed.core.lifecycle import State
from support_install import (
    AgentProcess,
    Device,
    Script,
    Spec,
    calls,
    no_processes_of,
    release_of,
    scripted_module,
    version,
    write_spec,
)

D, N, R, V, C, X = (
    "Download",
    "ArtifactInstall",
    "ArtifactReboot",
    "ArtifactVerifyReboot",
    "ArtifactCommit",
    "Cleanup",
)
B, BR, BV, F = (
    "ArtifactRollback",
    "ArtifactRollbackReboot",
    "ArtifactVerifyRollbackReboot",
    "ArtifactFailure",
)


@dataclass
class Case:
    """One of Mender's cases (tests/src/mender-update/daemon/state_test.cpp), without state scripts."""

    name: str
    chain: list[str]
    end: State
    on_disk: str
    script: Script = field(default_factory=Script)

    def __str__(self) -> str:
        return self.name


UNDO = [B, BR, BV, F, X]
ERRORS = [
    Case("normal", [D, N, R, V, C, X], State.SUCCEEDED, "new"),
    Case("normal, no reboot", [D, N, C, X], State.SUCCEEDED, "new", Script(reboot="No")),
    Case("normal, no rollback", [D, N, R, V, C, X], State.SUCCEEDED, "new", Script(rollback="No")),
    Case(
        "normal, file sizes",
        ["DownloadWithFileSizes", N, C, X],
        State.SUCCEEDED,
        "new",
        Script(sizes="Yes", reboot="No"),
    ),
    Case("error in Download", [D, X], State.FAILED, "old", Script(error=[D])),
    Case("error in Install", [D, N, *UNDO], State.ROLLED_BACK, "old", Script(error=[N])),
    Case(
        "error in Install, no rollback",
        [D, N, F, X],
        State.INCONSISTENT,
        "between",
        Script(error=[N], rollback="No"),
    ),
    Case("error in Reboot", [D, N, R, *UNDO], State.ROLLED_BACK, "old", Script(error=[R])),
    Case("error in VerifyReboot", [D, N, R, V, *UNDO], State.ROLLED_BACK, "old", Script(error=[V])),
    Case("error in Rollback", [D, N, R, V, B, F, X], State.INCONSISTENT, "between", Script(error=[V, B])),
    Case(
        "error in RollbackReboot is ignored",
        [D, N, R, V, *UNDO],
        State.ROLLED_BACK,
        "old",
        Script(error=[V, BR]),
    ),
    Case(
        "error in VerifyRollbackReboot once",
        [D, N, R, V, B, BR, BV, BR, BV, F, X],
        State.ROLLED_BACK,
        "old",
        Script(error=[V, BV]),
    ),
    Case(
        # Mender's document; its client breaks out of this loop by its general bound, without ArtifactFailure.
        "error in VerifyRollbackReboot for ever",
        [D, N, R, V, B, BR, BV, BR, BV, BR, BV, F, X],
        State.INCONSISTENT,
        "old",
        Script(error=[V, BV], forever=True),
    ),
    Case("error in Failure", [D, N, *UNDO], State.INCONSISTENT, "old", Script(error=[N, F])),
    Case("error in Cleanup", [D, N, R, V, *UNDO], State.ROLLED_BACK, "old", Script(error=[V, X])),
    # Mender reports a failure here although the new version runs; this project says what runs.
    Case("error in Cleanup after success", [D, N, R, V, C, X], State.SUCCEEDED, "new", Script(error=[X])),
    Case("error in Commit", [D, N, R, V, C, *UNDO], State.ROLLED_BACK, "old", Script(error=[C])),
    Case(
        "error in Commit, no reboot",
        [D, N, C, B, F, X],
        State.ROLLED_BACK,
        "old",
        Script(error=[C], reboot="No"),
    ),
    Case("hang in Download", [D, X], State.FAILED, "old", Script(hang=[D])),
    Case("hang in Install", [D, N, *UNDO], State.ROLLED_BACK, "old", Script(hang=[N])),
]

KILLS = [
    # Mender: Cleanup and a failure; it is tried anew.
    Case("killed in Download", [D, X], State.FAILED, "old", Script(killed=[D])),
    Case("killed in Install", [D, N, *UNDO], State.ROLLED_BACK, "old", Script(killed=[N])),
    Case(
        "killed in Install, no rollback",
        [D, N, F, X],
        State.INCONSISTENT,
        "between",
        Script(killed=[N], rollback="No"),
    ),
    Case("killed in Reboot", [D, N, R, V, C, X], State.SUCCEEDED, "new", Script(killed=[R])),
    Case("killed in VerifyReboot", [D, N, R, V, *UNDO], State.ROLLED_BACK, "old", Script(killed=[V])),
    Case("killed in Commit", [D, N, R, V, C, *UNDO], State.ROLLED_BACK, "old", Script(killed=[C])),
    Case(
        "killed in Commit, no reboot",
        [D, N, C, B, F, X],
        State.ROLLED_BACK,
        "old",
        Script(killed=[C], reboot="No"),
    ),
    Case(
        "killed in Cleanup after success",
        [D, N, C, X, X],
        State.SUCCEEDED,
        "new",
        Script(killed=[X], reboot="No"),
    ),
    Case(
        "killed in Rollback", [D, N, R, V, B, *UNDO], State.ROLLED_BACK, "old", Script(error=[V], killed=[B])
    ),
    Case(
        "killed in RollbackReboot",
        [D, N, R, V, *UNDO],
        State.ROLLED_BACK,
        "old",
        Script(error=[V], killed=[BR]),
    ),
    Case(
        "killed in VerifyRollbackReboot",
        [D, N, R, V, B, BR, BV, BV, F, X],
        State.ROLLED_BACK,
        "old",
        Script(error=[V], killed=[BV]),
    ),
    Case(
        "killed in Failure",
        [D, N, B, BR, BV, F, F, X],
        State.ROLLED_BACK,
        "old",
        Script(error=[N], killed=[F]),
    ),
    Case(
        "killed in Failure, no rollback",
        [D, N, F, F, X],
        State.INCONSISTENT,
        "between",
        Script(error=[N], killed=[F], rollback="No"),
    ),
    Case(
        "killed in Cleanup", [D, N, R, V, *UNDO, X], State.ROLLED_BACK, "old", Script(error=[V], killed=[X])
    ),
]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    yield device
    device.close()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload.bin"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("case", ERRORS, ids=str)
async def test_modules_are_called_in_menders_order(case: Case, device: Device, payload: Path) -> None:
    scripted_module(device, case.script)
    release, artifact = release_of(
        payload, module="scripted", version="2", module_timeout_s=0.5 if case.script.hang else 20.0
    )
    state = await device.install(1, release, artifact)
    assert calls(device) == case.chain
    assert state is case.end
    assert version(device) == case.on_disk
    assert device.left() == []
    row = device.row()
    assert row.state is case.end
    assert row.finished is not None
    installed = device.journal.installed()
    assert ("app" in installed) == (case.end is State.SUCCEEDED)
    if case.script.hang:
        assert row.reason == "module-timeout"
    elif case.end is not State.SUCCEEDED:
        assert row.reason == "module-failed"
        assert f"broken in {case.script.error[0]}" in row.detail


def killed_and_resumed(device: Device, payload: Path, tmp_path: Path) -> str:
    """Run the agent as a process, SIGKILL it where the module says, and start a new one after a reboot."""
    spec = Spec(root=str(device.root), boot="boot-1", action="install", payload=str(payload))
    with AgentProcess(write_spec(spec, tmp_path / "install.json")) as agent:
        agent.kill_when_told(device)
    spec = Spec(root=str(device.root), boot="boot-2", action="resume")
    with AgentProcess(write_spec(spec, tmp_path / "resume.json")) as agent:
        return agent.result()


@pytest.mark.parametrize("case", KILLS, ids=str)
def test_a_killed_agent_resumes_as_menders_does(
    case: Case, device: Device, payload: Path, tmp_path: Path
) -> None:
    scripted_module(device, case.script)
    state = killed_and_resumed(device, payload, tmp_path)
    assert calls(device) == case.chain
    assert state == case.end
    assert version(device) == case.on_disk
    assert device.left() == []
    assert device.row().state is case.end
    assert no_processes_of(device)


def test_every_state_of_the_protocol_fails_and_is_killed_in_some_case() -> None:
    states = {D, N, R, V, C, X, B, BR, BV, F}
    assert {state for case in ERRORS for state in case.script.error} == states
    assert {state for case in KILLS for state in case.script.killed} == states
