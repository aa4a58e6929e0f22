"""A device's reports: made when something changes, carried for others, kept until a hub has them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from driftseed.core import wire
from driftseed.core.errors import DiskFull, NotAMember, ReportInvalid
from driftseed.core.ids import DeviceId
from driftseed.core.reports import Report, ReportBook, encode_report, fit
from driftseed.net.identity import Identity
from driftseed.node.ledger import Ledger
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner
from driftseed.store.journal import Journal
from driftseed.trust.membership import Membership
from driftseed.trust.report import sign_report, verify_report

_log = logging.getLogger(__name__)

GATHER_S: Final = 0.3
"""Seconds for which changes are gathered into one report."""
REPORT_EVERY_S: Final = 300.0
"""Seconds between reports of a device on which nothing changes: its sign of life."""
BATCH: Final = 64
"""Reports that are on their way to one hub at once: under what the hub's frame limit lets through."""
_SEQUENCE: Final = "report"


class Reporter:
    """Makes, keeps and hands on reports.

    Args:
        identity: signs.
        certificate: ours.
        membership: checks the reports of others.
        journal: numbers ours.
        describe: what to report, under a sequence number.
    """

    def __init__(
        self,
        identity: Identity,
        certificate: bytes,
        membership: Membership,
        journal: Journal,
        ledger: Ledger,
        overlay: Overlay,
        describe: Callable[[int], Report],
    ) -> None:
        self._identity = identity
        self._certificate = certificate
        self._membership = membership
        self._journal = journal
        self._ledger = ledger
        self._overlay = overlay
        self._describe = describe
        self._book = ReportBook(identity.device)
        self._changed = asyncio.Event()
        self._under_way: Counter[DeviceId] = Counter()
        self._tasks = TaskOwner("reports")

    def start(self) -> None:
        """Begin to report."""
        self._changed.set()
        self._tasks.spawn(self._report_forever(), "report")

    async def close(self) -> None:
        """Stop; the next start makes a new report."""
        await self._tasks.close()

    def show(self, certificate: bytes) -> None:
        """Sign with a new certificate from now on."""
        self._certificate = certificate
        self.changed()

    def changed(self) -> None:
        """Something is to be reported soon."""
        self._changed.set()

    async def _report_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                _log.debug("a sign of life is due")
            else:
                # Changes come in bursts, and one report tells them all.
                await asyncio.sleep(GATHER_S)
            self._changed.clear()
            try:
                self._make()
            except DiskFull as error:
                # Without its number kept, the next report could be taken for an older one.
                _log.warning("no report", extra={"fields": {"reason": error.reason, "why": error.message}})

    def _make(self) -> None:
        report = fit(self._describe(self._journal.next_sequence(_SEQUENCE)))
        envelope = sign_report(
            self._identity.secret,
            certificate=self._certificate,
            sequence=report.sequence,
            body=encode_report(report),
        )
        try:
            self._book.add(verify_report(envelope, self._membership))
        except NotAMember as error:
            # Nobody would take it: said where an operator looks, and tried again with the next change.
            self._ledger.refuse_error(error)
            return
        hubs = self._overlay.hubs()
        for hub in hubs:
            self._offer(hub)
        if not hubs:
            message = wire.ReportCarried(envelope=envelope)
            for peer in self._overlay.peers():
                peer.send(message)

    def peer_came(self, peer: OverlayPeer) -> None:
        """A link came up: a hub gets all it lacks, a neighbour ours if no hub has it."""
        if peer.role == "hub":
            self._under_way[peer.device] = 0
            self._offer(peer)
        elif not self._overlay.hubs() and (own := self._book.newest(self._identity.device)) is not None:
            peer.send(wire.ReportCarried(envelope=own.data))

    def _offer(self, hub: OverlayPeer) -> None:
        room = BATCH - self._under_way[hub.device]
        for report in self._book.unstored(hub.device)[: max(room, 1)]:
            self._under_way[hub.device] += 1
            hub.send(wire.ReportCarried(envelope=report.data))

    def take(self, envelope: bytes, peer: OverlayPeer) -> None:
        """Carry a neighbour's report."""
        try:
            report = verify_report(envelope, self._membership)
        except (ReportInvalid, NotAMember) as error:
            self._ledger.refuse_error(error, peer.device)
            return
        if self._book.add(report):
            for hub in self._overlay.hubs():
                hub.send(wire.ReportCarried(envelope=envelope))

    def stored(self, message: wire.ReportStored, hub: OverlayPeer) -> None:
        """A hub has a report; only a hub's word counts."""
        if hub.role != "hub":
            self._ledger.drop("frame-out-of-place", hub.device, "ReportStored")
            return
        self._book.stored(DeviceId(message.device), message.sequence, hub.device)
        self._under_way[hub.device] = max(0, self._under_way[hub.device] - 1)
        if self._under_way[hub.device] == 0 and self._book.unstored(hub.device):
            self._offer(hub)
