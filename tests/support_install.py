"""A device's installer for tests: real journal, real processes, real files; scripted modules.

Run as a program it is the agent of one update, to be killed: ``python support_install.py SPEC.json``.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from driftseed.core.ids import Digest
from driftseed.core.lifecycle import Event, Row, State
from driftseed.core.model import Artifact, HealthCheck, ReleaseManifest
from driftseed.core.updates import UpdateRow
from driftseed.core.verified import VerifiedArtifact, VerifiedRelease
from driftseed.install.installer import Installer
from driftseed.install.runner import ModuleRunner
from driftseed.store.journal import Journal

ZEROES = "0" * 64


def deployment_id(number: int) -> str:
    return f"{number:032x}"


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def content(path: Path) -> bytes:
    return path.read_bytes()


def release_of(
    path: Path,
    *,
    name: str = "app",
    version: str = "1",
    module: str = "directory",
    meta: Mapping[str, Any] | None = None,
    health: HealthCheck | None = None,
    module_timeout_s: float = 20.0,
) -> tuple[VerifiedRelease, VerifiedArtifact]:
    """What trust/ would hand over for a file on the disk."""
    data = path.read_bytes()
    artifact = Artifact(
        filename=path.name, length=len(data), sha256=hashlib.sha256(data).hexdigest(), torrent_sha256=ZEROES
    )
    manifest = ReleaseManifest(
        name=name,
        version=version,
        module=module,
        artifacts=[artifact],
        created="2026-01-01T00:00:00Z",
        health=health,
        module_timeout_s=module_timeout_s,
        meta=dict(meta or {}),
    )
    digest = hashlib.sha256(repr(manifest).encode()).hexdigest()
    return VerifiedRelease(manifest, Digest(digest)), VerifiedArtifact(artifact, path)


def make_tar(path: Path, files: Mapping[str, bytes], *, mode: str = "w:gz") -> Path:
    """A tar archive of regular files."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # the mode is a parameter here
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return path


@dataclass
class Device:
    """One device's directories and what is in them."""

    root: Path
    boot: str = "boot-1"
    reboots: int = 0
    steps: list[Row] = field(default_factory=list)
    now: float = 1_000_000.0

    def __post_init__(self) -> None:
        self.run_dir = self.root / "run"
        self.install_root = self.root / "opt"
        self.modules = self.root / "modules"
        for directory in (self.root, self.install_root, self.modules):
            directory.mkdir(exist_ok=True, mode=0o755)
        self.journal = Journal(self.root / "agent.sqlite")
        self.installer = self.make_installer()

    def close(self) -> None:
        self.journal.close()

    def make_installer(self) -> Installer:
        runner = ModuleRunner(
            [self.modules],
            self.run_dir,
            {
                "DRIFTSEED_INSTALL_ROOT": str(self.install_root),
                "DRIFTSEED_STATE_DIR": str(self.root),
            },
        )
        return Installer(
            journal=self.journal,
            runner=runner,
            run_dir=self.run_dir,
            install_root=self.install_root,
            reboot=self._reboot,
            clock=self._clock,
            on_transition=lambda update, row: self.steps.append(row),
            device_type="testboard",
            boot_id=lambda: self.boot,
        )

    async def _reboot(self) -> None:
        self.reboots += 1

    def _clock(self) -> float:
        self.now += 1.0
        return self.now

    def begin(
        self, number: int, release: VerifiedRelease, artifact: VerifiedArtifact, *, attempts: int = 1
    ) -> str:
        """Record everything up to the point where the content was verified."""
        deployment = deployment_id(number)
        installed = self.journal.installed().get(release.manifest.name)
        self.journal.begin(
            UpdateRow(
                deployment_id=deployment,
                release=release.manifest.name,
                version=release.manifest.version,
                manifest_sha256=release.digest,
                module=release.manifest.module,
                artifact_sha256=artifact.artifact.sha256,
                artifact_length=artifact.artifact.length,
                artifact_filename=artifact.artifact.filename,
                attempts=attempts,
                started=self._clock(),
                previous=installed.version if installed else None,
            )
        )
        for event in (Event.START, Event.DONE):
            self.journal.advance(deployment, event, at=self._clock())
        return deployment

    async def install(self, number: int, release: VerifiedRelease, artifact: VerifiedArtifact) -> State:
        return await self.installer.install(self.begin(number, release, artifact), release, artifact)

    def row(self, number: int = 1) -> UpdateRow:
        update = self.journal.update(deployment_id(number))
        assert update is not None
        return update

    def left(self) -> list[str]:
        """What is left in the working directories."""
        payloads = self.run_dir / "payloads"
        return sorted(path.name for path in payloads.iterdir()) if payloads.exists() else []


@dataclass
class Script:
    """How a scripted module behaves: the lists name states."""

    error: Sequence[str] = ()
    """Return 1, once each; with ``forever`` always."""
    forever: bool = False
    hang: Sequence[str] = ()
    killed: Sequence[str] = ()
    """The agent is killed while the module is in this state, once each; with ``killed_forever`` always."""
    killed_forever: bool = False
    rollback: str = "Yes"
    reboot: str = "Yes"
    sizes: str = "No"


_MODULE = r"""#!/bin/sh
# A scripted update module: logs its calls and behaves as told. No question counts as a call.
here=@HERE@
state=$1
once() { # is it in the list, and the first time?
    case " $2 " in *" $state "*) ;; *) return 1 ;; esac
    [ "$3" = yes ] && return 0
    mkdir "$here/once.$1.$state" 2>/dev/null
}
case "$state" in
    ProvidePayloadFileSizes) echo "$state" >> "$here/questions"; echo "@SIZES@"; exit 0 ;;
    SupportsRollback) echo "$state" >> "$here/questions"; echo "@ROLLBACK@"; exit 0 ;;
    NeedsArtifactReboot) echo "$state" >> "$here/questions"; echo "@REBOOT@"; exit 0 ;;
esac
echo "$state" >> "$here/calls"
# What is "installed": the old version, the new one, or a mixture while it is being changed.
case "$state" in
    ArtifactInstall) echo between > "$here/version" ;;
    ArtifactRollback) echo between > "$here/version" ;;
esac
if once killed "@KILLED@" @KILLED_FOREVER@; then
    echo "$state" > "$here/at" # a pipe: somebody is waiting to kill the agent
    exec sleep 1000
fi
case " @HANG@ " in *" $state "*) exec sleep 1000 ;; esac
if once error "@ERROR@" @FOREVER@; then echo "broken in $state" >&2; exit 1; fi
case "$state" in
    ArtifactInstall) echo new > "$here/version" ;;
    ArtifactRollback) echo old > "$here/version" ;;
esac
exit 0
"""


def scripted_module(device: Device, script: Script) -> None:
    """Put the module ``scripted`` on the device."""
    here = device.root / "scripted"
    here.mkdir(exist_ok=True)
    os.mkfifo(here / "at")
    (here / "version").write_text("old\n")
    text = _MODULE
    for key, value in {
        "HERE": str(here),
        "SIZES": script.sizes,
        "ROLLBACK": script.rollback,
        "REBOOT": script.reboot,
        "KILLED": " ".join(script.killed),
        "KILLED_FOREVER": "yes" if script.killed_forever else "no",
        "HANG": " ".join(script.hang),
        "ERROR": " ".join(script.error),
        "FOREVER": "yes" if script.forever else "no",
    }.items():
        text = text.replace(f"@{key}@", value)
    path = device.modules / "scripted"
    path.write_text(text)
    path.chmod(0o755)


def calls(device: Device) -> list[str]:
    """States that the scripted module was called with, in order."""
    return (device.root / "scripted" / "calls").read_text().split()


def version(device: Device) -> str:
    return (device.root / "scripted" / "version").read_text().strip()


@dataclass
class Spec:
    """What the program below is to do."""

    root: str
    boot: str
    action: str
    payload: str = ""
    module: str = "scripted"
    version: str = "2"
    number: int = 1
    meta: dict[str, Any] = field(default_factory=dict)


def write_spec(spec: Spec, path: Path) -> Path:
    path.write_text(json.dumps(asdict(spec)))
    return path


class AgentProcess:
    """The program below, as a process that can be killed."""

    def __init__(self, spec: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, spec], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def kill_when_told(self, device: Device) -> str:
        """SIGKILL it as soon as the scripted module is where it says; returns the state."""
        pipe = os.open(device.root / "scripted" / "at", os.O_RDONLY | os.O_NONBLOCK)
        try:
            ready, _, _ = select.select([pipe], [], [], 30)
            assert ready, f"the module did not come to where it is to be killed: {self._process.poll()}"
            self._process.send_signal(signal.SIGKILL)
            return os.read(pipe, 64).decode().strip()
        finally:
            os.close(pipe)

    def result(self) -> str:
        """The state that it reached."""
        out, errors = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, errors.decode()
        return out.decode().strip()


def no_processes_of(device: Device) -> bool:
    """Whether nothing is left of what modules started."""
    mark = f"DRIFTSEED_STATE_DIR={device.root}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                return False
    return True


async def _main(spec: Spec) -> None:
    device = Device(Path(spec.root), boot=spec.boot)
    try:
        if spec.action == "install":
            release, artifact = release_of(
                Path(spec.payload), module=spec.module, version=spec.version, meta=spec.meta
            )
            state = await device.install(spec.number, release, artifact)
        else:
            states = await device.installer.resume_all()
            state = states.get(deployment_id(spec.number), device.row(spec.number).state)
        sys.stdout.write(f"{state}\n")
    finally:
        device.close()


if __name__ == "__main__":
    asyncio.run(_main(Spec(**json.loads(Path(sys.argv[1]).read_text()))))
