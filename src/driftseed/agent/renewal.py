"""Keeping a device's membership alive: a new receipt from a hub long before the old one ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from driftseed.core import limits, wire
from driftseed.core.errors import DriftseedError, NotAMember
from driftseed.core.model import NodeAddress
from driftseed.net.join import join_out
from driftseed.node import requests
from driftseed.node.home import Home
from driftseed.node.node import Node
from driftseed.node.tasks import TaskOwner
from driftseed.trust.admission import receipt_validity
from driftseed.trust.membership import Membership

_log = logging.getLogger(__name__)

LOOK_S: Final = 3600.0
"""Seconds between looks at whether it is time."""
RETRY_S: Final = 60.0
"""Seconds after a hub could not be asked, or a device without a hub was due."""


class MembershipRenewal:
    """Renews the certificate of an agent's node when half of its life is over.

    A linked hub is asked over its link. With a certificate that has expired there are no links: then hubs are asked
    as a newcomer asks them, with the old chain, which proves that one of them has counted this device before.

    Args:
        home: where the certificate is kept.
        node: shows it.
        membership: verifies what a hub gives.
        clock: seconds since 1970.
        renewed: told the new certificate.
    """

    def __init__(
        self,
        home: Home,
        node: Node,
        membership: Membership,
        clock: Callable[[], float],
        renewed: Callable[[bytes], None],
    ) -> None:
        self._home = home
        self._node = node
        self._membership = membership
        self._clock = clock
        self._renewed = renewed
        self._wake = asyncio.Event()
        self._tasks = TaskOwner("membership", node.fail)

    def start(self) -> None:
        """Begin to look."""
        self._tasks.spawn(self._run(), "renew")

    async def close(self) -> None:
        """Stop looking."""
        await self._tasks.close()

    def look(self) -> None:
        """Look now: a hub was met, or the clock has moved."""
        self._wake.set()

    @property
    def due(self) -> bool:
        """Whether half of the certificate's life is over."""
        validity = receipt_validity(self._node.certificate)
        return validity is not None and self._clock() >= sum(validity) / 2

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            wait_s = LOOK_S
            if self.due and not await self._renew():
                wait_s = RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _renew(self) -> bool:
        for hub in self._node.overlay.hubs():
            try:
                self._take(await requests.renew(hub.link.connection, self._node.certificate))
            except DriftseedError as error:
                self._failed(hub.device, error)
            else:
                return True
        validity = receipt_validity(self._node.certificate)
        if validity is None or self._clock() < validity[1]:
            return False
        return await self._ask_as_newcomer()

    async def _ask_as_newcomer(self) -> bool:
        fleet = self._node.fleet
        known = {hub.device: hub for hub in (*self._node.options.hubs, *(fleet.hubs if fleet else ()))}
        for hub in known.values():
            try:
                self._take(await self._join(hub))
            except DriftseedError as error:
                self._failed(hub.device, error)
            else:
                self._node.book.forgive()
                self._node.overlay.look_around()
                return True
        return False

    async def _join(self, hub: NodeAddress) -> bytes:
        node = self._node
        connection = await node.endpoint.dial(hub, wire.ALPN_JOIN, limits.DIAL_TIMEOUT_S)
        request = wire.JoinRequest(fleet=node.options.fleet, invitation=node.certificate, clock=self._clock())
        return (await join_out(connection, request)).certificate

    def _take(self, certificate: bytes) -> None:
        """Keep a new certificate, if it is one. Raises NotAMember or DiskFull."""
        member = self._membership.check(certificate, self._node.device)
        before = receipt_validity(self._node.certificate)
        if before is not None and member.expires <= before[1]:
            raise NotAMember("a hub renewed the membership for no longer than it lasts anyway")
        self._home.keep(msgspec.structs.replace(self._home.member(), certificate=certificate))
        self._node.certificate = certificate
        self._renewed(certificate)
        _log.info("membership renewed", extra={"fields": {"expires": member.expires}})

    def _failed(self, hub: str, error: DriftseedError) -> None:
        _log.warning(
            "membership not renewed",
            extra={"fields": {"hub": hub[:16], "reason": error.reason, "why": error.message}},
        )
