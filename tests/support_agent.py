"""An agent's insides for tests of its API: real trust and submissions, made-up answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftseed.agent.config import AgentConfig, ConfigStore, as_object, restart_needed
from driftseed.core.apiviews import (
    AgentStatus,
    Announced,
    ConfigView,
    ContentView,
    CountersView,
    EngineView,
    HistoryEntry,
    InstalledView,
    OverlayView,
    PeerView,
    ProblemView,
    RefusalView,
    UpdateDetail,
    UpdateView,
)
from driftseed.core.errors import Conflict, NotFound
from driftseed.core.ids import Digest
from driftseed.core.model import NodeAddress
from driftseed.core.verified import VerifiedFleet
from driftseed.store.files import adopt
from driftseed.trust.device import FleetTrust
from driftseed.trust.source import MetadataSource

DEVICE = "d0" * 32
DEPLOYMENT = "0" * 31 + "1"
RUNNING = "0" * 31 + "2"


class TrustingTaker:
    """Verifies with the real verifier, and keeps what it takes in a directory."""

    def __init__(self, directory: Path, first_root: bytes, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.trust = FleetTrust(directory / "trust", first_root, clock)
        self.kept = directory / "kept"
        self.kept.mkdir(parents=True)
        self.named_calls = 0
        self.failures: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self._first_root = first_root
        self._clock = clock

    async def named(self, source: MetadataSource) -> Mapping[Digest, int]:
        self.named_calls += 1

        def verify() -> VerifiedFleet:
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                return FleetTrust(Path(scratch), self._first_root, self._clock).refresh(source)

        return _contents(await asyncio.to_thread(verify))

    def holds(self, digest: Digest) -> bool:
        return (self.kept / digest).exists()

    async def take_over(self, source: MetadataSource, contents: Mapping[Digest, Path]) -> int:
        if self.gate is not None:
            await self.gate.wait()
        fleet = await asyncio.to_thread(self.trust.refresh, source)
        wanted = _contents(fleet)
        for digest, path in contents.items():
            if digest in wanted:
                adopt(path, self.kept / digest)
            if self.failures:
                raise self.failures.pop()
        return fleet.timestamp_version


def _contents(fleet: VerifiedFleet) -> dict[Digest, int]:
    return {
        Digest(artifact.sha256): artifact.length
        for deployment in fleet.deployments
        for artifact in deployment.release.manifest.artifacts
    }


def update_view(deployment: str, state: str) -> UpdateView:
    return UpdateView(
        deployment=deployment,
        release="app",
        version="1.0",
        state=state,
        progress=0.5,
        reason="",
        detail="",
        attempts=1,
        started=1.0,
        changed=2.0,
        finished=None,
        seconds=1.0,
        bytes_from={"hub/direct": 7},
    )


def peer_view() -> PeerView:
    return PeerView(
        device=DEVICE,
        role="hub",
        state="connected",
        path="direct",
        rtt_ms=1.5,
        address="127.0.0.1:4433",
        since_s=3.0,
        direction="out",
        bytes_in=1,
        bytes_out=2,
        purpose=["overlay"],
    )


@dataclass
class MadeUpAgent:
    """Answers as an agent does; its settings are real."""

    data: Path
    removed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._store = ConfigStore(self.data)
        self._running = self._store.load()

    async def status(self) -> AgentStatus:
        return AgentStatus(
            device=DEVICE,
            fleet="f1" * 32,
            fleet_name="harbour",
            role="agent",
            agent_version="0.1.0",
            uptime_s=1.0,
            timestamp_version=4,
            snapshot_version=3,
            metadata_expires="2027-01-16T08:00:00Z",
            hubs=1,
            neighbours=2,
            installed={
                "app": InstalledView(version="1.0", manifest_sha256="5e" * 32, deployment=DEPLOYMENT, at=1.0)
            },
            labels={"site": "glasgow"},
            inventory={"arch": "arm64"},
            free_bytes=1,
            content=ContentView(bytes=1, quota=2, files=1),
            clock_skew_s=None,
            counters=CountersView(drops={"frame-malformed": 1}, refusals={}),
            refusals=[RefusalView(time=1.0, reason="metadata-replayed", detail="old", peer=DEVICE)],
            engine=EngineView(running=False),
            addresses=["127.0.0.1:4433"],
            relay=None,
            problems=[ProblemView(reason="clock-wrong", message="the clock is off", hint="set it")],
        )

    async def overlay(self) -> OverlayView:
        address = NodeAddress(device=DEVICE, addrs=["127.0.0.1:4433"])
        return OverlayView(
            device=DEVICE,
            addresses=["127.0.0.1:4433"],
            observed=[],
            relay=None,
            address=address,
            hubs=[address],
            known_devices=3,
        )

    async def peers(self) -> Sequence[PeerView]:
        return [peer_view()]

    async def updates(self) -> Sequence[UpdateView]:
        return [update_view(RUNNING, "downloading"), update_view(DEPLOYMENT, "succeeded")]

    async def update(self, deployment: str) -> UpdateDetail:
        for each in await self.updates():
            if each.deployment == deployment:
                fields = {name: getattr(each, name) for name in each.__struct_fields__}
                return UpdateDetail(**fields, history=[HistoryEntry(at=1.0, state="waiting", event="start")])
        raise NotFound(f"no update {deployment}")

    async def remove_update(self, deployment: str) -> None:
        update = await self.update(deployment)
        if update.state == "downloading":
            raise Conflict("it is under way")
        self.removed.append(deployment)

    async def announce(self) -> Announced:
        return Announced(neighbours=2, timestamp_version=4)

    async def config(self) -> ConfigView:
        config = self._store.config
        return ConfigView(
            config=as_object(config),
            defaults=as_object(AgentConfig()),
            restart=restart_needed(self._running, config),
        )

    async def change_config(self, changes: Mapping[str, Any]) -> ConfigView:
        self._store.change(changes)
        return await self.config()

    async def metrics(self) -> str:
        return "# HELP a b\n# TYPE a gauge\na 1\n"
