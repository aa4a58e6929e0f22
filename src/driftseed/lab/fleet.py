"""A fleet for the laboratory, with its hubs as real processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from driftseed.core.addresses import parse_address
from driftseed.core.model import NodeAddress
from driftseed.lab.processes import HOME, START_S, Child, Processes
from driftseed.lab.topology import Device
from driftseed.net.identity import Identity
from driftseed.publish.fleet import write_hub_kit
from driftseed.trust.membership import issue_certificate
from driftseed.trust.repository import FleetRepository

HUB_PORT: Final = 443
"""Also where firewalls let nothing but the web through."""
_READY: Final = "hub ready: "


@dataclass(frozen=True, slots=True)
class Hub:
    """A running hub."""

    child: Child
    device: Device
    address: NodeAddress


class LabFleet:
    """A fleet directory and its daemons.

    Args:
        processes: what starts and ends them.
        label: told apart from other fleets of the same laboratory.
    """

    def __init__(self, processes: Processes, label: str = "lab") -> None:
        self.processes = processes
        self.repository = FleetRepository.create(
            HOME / label, name=label, root_keys=1, threshold=1, passphrase=None, clock=time.time
        )

    async def start_hub(self, device: Device) -> Hub:
        """Start a hub on a device, as its operator would: ``driftseed hub run``.

        Raises:
            LabFailed: it is not ready in time.
        """
        kit = HOME / f"{device.name}.kit"
        if not kit.exists():
            write_hub_kit(self.repository, kit)
        listen = f"{device.ip}:{HUB_PORT}"
        arguments = ("hub", "run", "--kit", str(kit), "--data", str(HOME / device.name), "--listen", listen)
        child = await self.processes.start(device.name, device.namespace, ["-m", "driftseed", *arguments])
        line = await child.line(START_S)
        if not line.startswith(_READY):
            raise child.failure(f"said {line!r} instead of its address")
        written = parse_address(line.removeprefix(_READY))
        address = NodeAddress(
            device=written.device, addrs=[str(host) for host in written.hosts], relay=written.relay
        )
        return Hub(child, device, address)

    def certificate(self, identity: Identity, labels: Mapping[str, str] | None = None) -> bytes:
        """Make a device a member, as a hub would."""
        return issue_certificate(
            self.repository.enrolment_key(),
            fleet=self.repository.fleet_id,
            device=identity.device,
            role="agent",
            labels=labels or {},
            now=time.time() - 60,
        )
