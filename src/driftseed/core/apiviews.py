"""What the agent's API and the hub's show: the field names are a contract (docs/api.md); add, don't rename."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from driftseed.core.model import NodeAddress


class ContentView(Struct, frozen=True, kw_only=True):
    """The content that a node keeps."""

    bytes: int
    quota: int
    files: int


class EngineView(Struct, frozen=True, kw_only=True):
    """The BitTorrent engine's process."""

    running: bool
    pid: int | None = None


class CountersView(Struct, frozen=True, kw_only=True):
    """What was dropped and refused since the start, by reason."""

    drops: dict[str, int]
    refusals: dict[str, int]


class RefusalView(Struct, frozen=True, kw_only=True):
    """Something that could have changed this device, and was not let."""

    time: float
    """Seconds since 1970."""
    reason: str
    detail: str
    peer: str


class ProblemView(Struct, frozen=True, kw_only=True):
    """Something that a person should see to."""

    reason: str
    message: str
    hint: str


class PeerView(Struct, frozen=True, kw_only=True):
    """A device with which there is a connection."""

    device: str
    role: str
    state: str
    path: str | None
    """``lan``, ``direct`` or ``relayed``; none while it is not known."""
    rtt_ms: float | None
    address: str | None
    since_s: float
    direction: Literal["in", "out"]
    bytes_in: int
    bytes_out: int
    purpose: list[str]
    """Of ``overlay`` and ``tunnel``."""
    reason: str = ""
    """Why the last attempt failed, of a hub that is not connected."""


class InstalledView(Struct, frozen=True, kw_only=True):
    """What is installed under a release name."""

    version: str
    manifest_sha256: str
    deployment: str
    at: float | None
    """Seconds since 1970."""


class AgentStatus(Struct, frozen=True, kw_only=True):
    """``GET /v1/status`` of an agent."""

    device: str
    fleet: str
    fleet_name: str
    role: str
    agent_version: str
    uptime_s: float
    timestamp_version: int
    snapshot_version: int
    metadata_expires: str | None
    """RFC 3339, UTC; none before there is any metadata."""
    hubs: int
    neighbours: int
    installed: dict[str, InstalledView]
    labels: dict[str, str]
    inventory: dict[str, str]
    free_bytes: int
    content: ContentView
    clock_skew_s: float | None
    counters: CountersView
    refusals: list[RefusalView]
    """Newest first, at most 64."""
    engine: EngineView
    addresses: list[str]
    relay: str | None
    problems: list[ProblemView]


class OverlayView(Struct, frozen=True, kw_only=True):
    """``GET /v1/overlay``: how this node can be reached, and whom it knows."""

    device: str
    addresses: list[str]
    """Bound here."""
    observed: list[str]
    """As hubs and neighbours see this node."""
    relay: str | None
    address: NodeAddress
    """What to give to somebody who shall dial it."""
    hubs: list[NodeAddress]
    known_devices: int


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """One step of an update."""

    at: float
    """Seconds since 1970."""
    state: str
    event: str


class UpdateView(Struct, frozen=True, kw_only=True):
    """One deployment on this device."""

    deployment: str
    release: str
    version: str
    state: str
    progress: float
    """0 to 1."""
    reason: str
    detail: str
    attempts: int
    started: float
    changed: float
    finished: float | None
    """Seconds since 1970, like the two before."""
    seconds: float
    bytes_from: dict[str, int]
    """``hub/direct``, ``peers/lan`` and so on."""


class UpdateDetail(UpdateView, frozen=True, kw_only=True):
    """``GET /v1/updates/{deployment}``."""

    history: list[HistoryEntry]


class Announced(Struct, frozen=True, kw_only=True):
    """``POST /v1/announce``."""

    neighbours: int
    """To how many it was given."""
    timestamp_version: int


class ConfigView(Struct, frozen=True, kw_only=True):
    """``GET`` and ``PATCH /v1/config``."""

    config: dict[str, Any]
    defaults: dict[str, Any]
    restart: list[str]
    """Settings that the running agent takes over only when it starts again."""


class HubDevices(Struct, frozen=True, kw_only=True):
    """Devices that a hub knows, in numbers."""

    known: int
    connected: int
    stuck: int


class HubStatus(Struct, frozen=True, kw_only=True):
    """``GET /v1/status`` of a hub."""

    device: str
    fleet: str
    fleet_name: str
    version: str
    uptime_s: float
    timestamp_version: int
    snapshot_version: int
    metadata_expires: str | None
    devices: HubDevices
    relay: dict[str, Any]
    """The relay server's counters; empty when another one is used."""
    content: ContentView
    counters: CountersView
    engine: EngineView
    address: str
    """``ID@HOST:PORT``, to copy into ``fleet hubs``."""
    role: str = "hub"
