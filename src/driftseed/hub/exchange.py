"""Hubs tell each other what devices report, so that any of them can be lost.

Each hub logs the reports that were news to it, in the order of their arrival. Hubs that are linked say how long
their log is (``ReportsLogged``) and read each other's from where they ended (``GetReports``). What comes from
another hub is verified like what comes from a device, and is news or not: that ends the circle.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.errors import DiskFull, NotAMember, PeerMisbehaved, ReportInvalid, TransportError
from driftseed.core.ids import DeviceId
from driftseed.core.verified import VerifiedReport
from driftseed.hub.observer import FleetObserver
from driftseed.net.stream import Stream
from driftseed.node import requests
from driftseed.node.node import Node
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner
from driftseed.trust.membership import Membership
from driftseed.trust.report import verify_report

_log = logging.getLogger(__name__)

GATHER_S: Final = 0.2
"""Seconds for which reports are gathered before other hubs are told of them."""


class ReportExchange:
    """What one hub gives to other hubs and takes from them.

    Args:
        node: its overlay has links to the others.
        observer: the reports on the disk.
        membership: checks those that come.
        tasks: owns what goes on here.
    """

    def __init__(self, node: Node, observer: FleetObserver, membership: Membership, tasks: TaskOwner) -> None:
        self._node = node
        self._observer = observer
        self._membership = membership
        self._tasks = tasks
        self._read: dict[DeviceId, tuple[str, int]] = {}
        """How far each hub's log was read."""
        self._reading: set[DeviceId] = set()
        self._written = asyncio.Event()
        node.requests[wire.GetReports] = self._answer
        node.overlay.frames[wire.ReportsLogged] = self._on_logged
        observer.on_written = self._written.set

    def start(self) -> None:
        """Begin to tell others of news."""
        self._tasks.spawn(self._tell(), "tell hubs")

    def peer_came(self, peer: OverlayPeer) -> None:
        """A link came up: another hub is told how much there is."""
        if peer.role == "hub":
            self._tasks.spawn(self._tell_one(peer), "tell hub")

    async def _tell_one(self, peer: OverlayPeer) -> None:
        epoch, last = await self._observer.log_end()
        peer.send(wire.ReportsLogged(epoch=epoch, last=last))

    async def _tell(self) -> None:
        while True:
            await self._written.wait()
            # Reports come in bursts, and one word tells of them all.
            await asyncio.sleep(GATHER_S)
            self._written.clear()
            if hubs := self._node.overlay.hubs():
                epoch, last = await self._observer.log_end()
                for hub in hubs:
                    hub.send(wire.ReportsLogged(epoch=epoch, last=last))

    def _on_logged(self, message: wire.Message, peer: OverlayPeer) -> None:
        if not isinstance(message, wire.ReportsLogged) or peer.role != "hub":
            self._node.ledger.drop("frame-out-of-place", peer.device, type(message).__name__)
            return
        if self._behind(message, peer.device) and peer.device not in self._reading:
            self._reading.add(peer.device)
            if self._tasks.spawn(self._read_log(peer), f"reports {peer.device[:8]}") is None:
                self._reading.discard(peer.device)

    def _behind(self, message: wire.ReportsLogged, device: DeviceId) -> bool:
        epoch, since = self._read.get(device, ("", 0))
        return message.last > (since if epoch == message.epoch else 0)

    async def _read_log(self, peer: OverlayPeer) -> None:
        try:
            while True:
                epoch, since = self._read.get(peer.device, ("", 0))
                end, reports = await self._ask(peer, epoch, since)
                await self._observer.add_from_hub(reports)
                self._read[peer.device] = (end.epoch, end.last)
                if not reports and end.last <= since:
                    return
        except PeerMisbehaved as error:
            self._node.ledger.drop(error.kind, peer.device, error.message)
            peer.close(error.kind)
        except (TransportError, DiskFull, ReportInvalid) as error:
            # The next word of that hub, or the next link to it, begins here again.
            _log.info("reports", extra={"fields": {"hub": peer.device[:16], "why": error.message}})
        finally:
            self._reading.discard(peer.device)

    async def _ask(
        self, peer: OverlayPeer, epoch: str, since: int
    ) -> tuple[wire.ReportsLogged, list[VerifiedReport]]:
        reports: list[VerifiedReport] = []
        request = wire.GetReports(epoch=epoch, since=since)
        async with requests.request(peer.link.connection, request) as stream:
            for _ in range(limits.REPORTS_PER_REQUEST_MAX + 1):
                frame = await stream.read_frame(limits.FRAME_BYTES_MAX, limits.READ_TIMEOUT_S)
                match frame:
                    case wire.ReportCarried(envelope=envelope):
                        try:
                            reports.append(verify_report(envelope, self._membership))
                        except (ReportInvalid, NotAMember) as error:
                            # A certificate that ended since it was logged there is no fault of that hub.
                            self._node.ledger.refuse_error(error, peer.device)
                    case wire.ReportsLogged():
                        return frame, reports
                    case _:
                        break
        raise PeerMisbehaved(
            "an answer to GetReports that does not end as it should", kind="answer-unexpected"
        )

    async def _answer(self, message: wire.Message, stream: Stream, device: DeviceId) -> None:
        """Give another hub a part of the log. Raises TransportError when it is gone."""
        peer = self._node.overlay.peer(device)
        if not isinstance(message, wire.GetReports) or peer is None or peer.role != "hub":
            self._node.ledger.drop("frame-out-of-place", device, type(message).__name__)
            await stream.reset(requests.RESET_GONE)
            return
        epoch, _ = await self._observer.log_end()
        since = message.since if message.epoch == epoch else 0
        entries = await self._observer.logged(since, limits.REPORTS_PER_REQUEST_MAX)
        for _, envelope in entries:
            await stream.write_frame(wire.ReportCarried(envelope=envelope), limits.WRITE_TIMEOUT_S)
        last = entries[-1][0] if entries else since
        await stream.write_frame(wire.ReportsLogged(epoch=epoch, last=last), limits.WRITE_TIMEOUT_S)
        await stream.finish()
