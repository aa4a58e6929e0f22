"""What every kind of node can show of itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime

from driftseed.core.apiviews import (
    ContentView,
    CountersView,
    EngineView,
    PeerView,
    ProblemView,
    RefusalView,
)
from driftseed.core.connection import State as ConnectionState
from driftseed.core.errors import ClockWrong, MetadataExpired
from driftseed.core.ids import DeviceId
from driftseed.core.metrics import Metrics
from driftseed.node.node import Node


def peers_view(node: Node) -> list[PeerView]:
    """Every device with which there is a link, hubs first."""
    received: Counter[DeviceId] = Counter()
    sent: Counter[DeviceId] = Counter()
    for flow, size in node.contents.swarming.tunnels.carried.items():
        (received if flow.direction == "in" else sent)[flow.device] += size
    views: list[PeerView] = []
    overlay = {peer.device: peer for peer in node.overlay.peers()}
    tunnels = {link.member.device: link for link in node.contents.swarming.links()}
    for device in [*overlay, *(each for each in tunnels if each not in overlay)]:
        peer, tunnel = overlay.get(device), tunnels.get(device)
        link = tunnel if peer is None else peer.link
        if link is None:
            continue
        path = link.connection.path()
        views.append(
            PeerView(
                device=device,
                role=link.member.role,
                state=node.links.connections.get(device).state
                if peer is not None
                else ConnectionState.LINKED,
                path=path.kind,
                rtt_ms=float(path.rtt_ms),
                address=path.remote_addr or None,
                since_s=0.0 if peer is None else max(0.0, time.monotonic() - peer.since),
                direction="in" if peer is not None and not peer.outgoing else "out",
                bytes_in=received[device],
                bytes_out=sent[device],
                purpose=[name for name, one in (("overlay", peer), ("tunnel", tunnel)) if one is not None],
            )
        )
    return views + _hubs_missed(node, {view.device for view in views})


def _hubs_missed(node: Node, shown: Collection[str]) -> list[PeerView]:
    """Hubs that should be there and are not: what stands in the way."""
    views = []
    fleet = node.fleet
    hubs = {DeviceId(hub.device): hub for hub in (*node.options.hubs, *(fleet.hubs if fleet else ()))}
    for device, address in hubs.items():
        connection = node.links.connections.get(device)
        if (
            device in shown
            or device == node.device
            or connection.state
            in {
                ConnectionState.UNKNOWN,
                ConnectionState.LINKED,
            }
        ):
            continue
        views.append(
            PeerView(
                device=device,
                role="hub",
                state=connection.state,
                path=None,
                rtt_ms=None,
                address=next(iter(address.addrs), None),
                since_s=max(0.0, time.monotonic() - connection.since),
                direction="out",
                bytes_in=0,
                bytes_out=0,
                purpose=[],
                reason=connection.reason,
            )
        )
    return views


def content_view(node: Node) -> ContentView:
    """The content that is kept."""
    store = node.contents.store
    return ContentView(bytes=store.used_bytes, quota=store.quota_bytes, files=len(store.digests()))


def engine_view(node: Node) -> EngineView:
    """The engine's process."""
    engine = node.contents.engine
    return EngineView(running=engine.running, pid=engine.pid)


def counters_view(node: Node) -> CountersView:
    """Drops and refusals, the connections that never became a link included."""
    drops = Counter(node.ledger.drops)
    drops.update(node.endpoint.counters)
    return CountersView(drops=dict(drops), refusals=dict(node.ledger.refusal_counts))


def refusals_view(node: Node) -> list[RefusalView]:
    """The newest refusals in words, newest first."""
    return [
        RefusalView(time=each.time, reason=each.reason, detail=each.detail, peer=each.peer)
        for each in reversed(node.ledger.refusals)
    ]


def expires_view(node: Node) -> str | None:
    """When the metadata expires, RFC 3339."""
    fleet = node.fleet
    if fleet is None:
        return None
    return datetime.fromtimestamp(fleet.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_problems(node: Node, skew_max_s: float) -> list[ProblemView]:
    """What is wrong with the clock or the freshness of the metadata."""
    problems = []
    skew = node.clock_skew_s
    if skew is not None and abs(skew) > skew_max_s:
        problems.append(
            ProblemView(
                reason=ClockWrong.reason,
                message=f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} a hub's",
                hint="set the clock: what is signed is judged by it",
            )
        )
    fleet = node.fleet
    if fleet is not None and fleet.expires < node.clock():
        problems.append(
            ProblemView(
                reason=MetadataExpired.reason,
                message=f"the metadata expired at {expires_view(node)}",
                hint="check the clock; else publish, or start a hub that holds the timestamp key",
            )
        )
    return problems


def node_metrics(node: Node, metrics: Metrics) -> None:
    """Fill in what every node counts."""
    connections = metrics.gauge(
        "driftseed_connections", "Devices, by the state of the connection.", ["state"]
    )
    for connection in node.links.connections.values():
        connections.add(1, state=connection.state)
    drops = metrics.counter("driftseed_drops_total", "Malformed or excessive input, by reason.", ["reason"])
    for reason, count in counters_view(node).drops.items():
        drops.set(count, reason=reason)
    refusals = metrics.counter("driftseed_refusals_total", "False or stale claims, by reason.", ["reason"])
    for reason, count in node.ledger.refusal_counts.items():
        refusals.set(count, reason=reason)
    carried = metrics.counter(
        "driftseed_content_bytes_total", "Content carried through tunnels.", ["direction", "path"]
    )
    totals: Counter[tuple[str, str]] = Counter()
    for flow, size in node.contents.swarming.tunnels.carried.items():
        totals[flow.direction, flow.kind] += size
    for (direction, path), size in totals.items():
        carried.set(size, direction=direction, path=path)
    links = metrics.gauge("driftseed_links", "Overlay links, by the other side's role.", ["role"])
    for role, count in Counter(peer.role for peer in node.overlay.peers()).items():
        links.set(count, role=role)
    version = metrics.gauge("driftseed_timestamp_version", "Newest trusted timestamp version.")
    version.set(node.keeper.ready)
    content = content_view(node)
    metrics.gauge("driftseed_content_store_bytes", "Content kept.").set(content.bytes)
    metrics.gauge("driftseed_content_quota_bytes", "Content that may be kept.").set(content.quota)
    metrics.gauge("driftseed_engine_running", "1 while the BitTorrent engine runs.").set(
        float(node.contents.engine.running)
    )
