"""The machines of the demo: what the devices say they are, and how they are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from driftseed.demo.payload import RELEASE
from driftseed.demo.processes import Child
from driftseed.publish.send import LocalApi

Connect: TypeAlias = Callable[[Path], LocalApi]
"""Gives the API behind a Unix socket."""

_BOARDS: Final = (
    ("raspberrypi-4", "arm64"),
    ("jetson-nano", "arm64"),
    ("nuc-11", "amd64"),
    ("nuc-11", "amd64"),
)
"""Board and architecture of the first, second ... device, over and over: any two have one architecture."""


@dataclass(frozen=True, slots=True)
class Update:
    """How one deployment is doing on one device."""

    state: str
    progress: float = 0.0
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes_from: Mapping[str, int] = field(default_factory=dict)
    """By ``hub/lan``, ``peer/direct`` and so on."""


@dataclass(slots=True, eq=False)
class Device:
    """One device: a data directory, a process while it is on, and what it said last."""

    name: str
    board: str
    arch: str
    data: Path
    api: LocalApi
    id: str = ""
    child: Child | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, Update] = field(default_factory=dict)
    """By deployment."""

    @property
    def on(self) -> bool:
        """It is running."""
        return self.child is not None

    @property
    def version(self) -> str:
        """What it has installed; empty for nothing."""
        installed = self.status.get("installed", {}).get(RELEASE)
        return "" if installed is None else str(installed["version"])

    @property
    def timestamp(self) -> int:
        """The newest metadata that it trusts."""
        return int(self.status.get("timestamp_version", 0))

    @property
    def tree(self) -> Path:
        """Where the release is installed."""
        return self.data / "installed" / RELEASE / "current"

    def update(self, deployment: str) -> Update:
        """How a deployment is doing."""
        return self.updates.get(deployment, Update("unheard"))

    def refusals(self, reason: str, peer: str) -> list[str]:
        """What it refused of a peer for a reason, in its words."""
        return [
            str(each["detail"])
            for each in self.status.get("refusals", [])
            if (each["reason"], each["peer"]) == (reason, peer)
        ]

    def look(self) -> None:
        """Ask it what it is at; blocking. Raises DriftseedError."""
        self.status = self.api.request("GET", "/v1/status")
        self.updates = {
            str(each["deployment"]): Update(
                state=str(each["state"]),
                progress=float(each["progress"]),
                reason=str(each["reason"]),
                detail=str(each["detail"]),
                seconds=float(each["seconds"]),
                bytes_from={str(key): int(size) for key, size in each["bytes_from"].items()},
            )
            for each in self.api.request("GET", "/v1/updates")["updates"]
        }


def make_devices(count: int, directory: Path, connect: Connect) -> list[Device]:
    """So many devices of three boards and two architectures, none of them on."""
    devices = []
    for number in range(count):
        board, arch = _BOARDS[number % len(_BOARDS)]
        data = directory / f"{number + 1:02}"
        devices.append(Device(f"dev-{number + 1:02}", board, arch, data, connect(data / "agent.sock")))
    return devices


def by_architecture(devices: list[Device]) -> dict[str, list[Device]]:
    """Devices of each architecture that there is, in their order."""
    return {arch: [each for each in devices if each.arch == arch] for arch in {each.arch for each in devices}}
