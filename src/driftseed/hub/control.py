"""What the hub's API asks of a running hub."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from driftseed import __version__
from driftseed.core.addresses import format_address
from driftseed.core.apiviews import HubDevices, HubStatus, PeerView
from driftseed.core.metrics import Metrics
from driftseed.hub.daemon import Hub
from driftseed.hub.views import DeploymentView, DeviceView
from driftseed.net.relay import RelayServer
from driftseed.node import views


class Control:
    """Answers for one hub (``hub.api.HubControl``).

    Args:
        hub: running.
        relay: its own relay server; None when another one is used.
    """

    def __init__(self, hub: Hub, relay: RelayServer | None) -> None:
        self._hub = hub
        self._relay = relay

    def _connected(self) -> Mapping[str, str]:
        return {
            peer.device: peer.link.connection.path().kind
            for peer in self._hub.node.overlay.peers()
            if peer.role == "agent"
        }

    async def status(self) -> HubStatus:
        """How it does."""
        hub, node = self._hub, self._hub.node
        devices = await self.devices()
        fleet = node.fleet
        stats: dict[str, Any] = dict(self._relay.stats()) if self._relay else {}
        return HubStatus(
            device=hub.identity.device,
            fleet=hub.kit.fleet,
            fleet_name=hub.kit.name,
            version=__version__,
            uptime_s=time.monotonic() - hub.started,
            timestamp_version=node.keeper.ready,
            snapshot_version=fleet.snapshot_version if fleet else 0,
            metadata_expires=views.expires_view(node),
            devices=HubDevices(
                known=len(devices),
                connected=sum(each.connected for each in devices),
                stuck=sum(each.stuck is not None for each in devices),
            ),
            relay=stats,
            content=views.content_view(node),
            counters=views.counters_view(node),
            engine=views.engine_view(node),
            address=format_address(hub.public_address()),
        )

    async def devices(self) -> Sequence[DeviceView]:
        """Every device it knows."""
        return await self._hub.observer.devices(self._connected())

    async def deployments(self) -> Sequence[DeploymentView]:
        """Every deployment in force."""
        fleet = self._hub.node.fleet
        return await self._hub.observer.deployments(
            [each.deployment for each in fleet.deployments] if fleet else []
        )

    async def peers(self) -> Sequence[PeerView]:
        """Its connections."""
        return views.peers_view(self._hub.node)

    async def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        metrics = Metrics()
        views.node_metrics(self._hub.node, metrics)
        devices = await self.devices()
        known = metrics.gauge("driftseed_devices", "Devices that this hub knows.")
        known.set(len(devices))
        stuck = metrics.gauge("driftseed_devices_stuck", "Devices that need a look.")
        stuck.set(sum(each.stuck is not None for each in devices))
        if self._relay is not None:
            relay = metrics.gauge("driftseed_relay", "The relay's own figures.", ["figure"])
            for figure, value in self._relay.stats().items():
                relay.set(value, figure=figure)
        return metrics.render()
