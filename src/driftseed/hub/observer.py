"""What a hub makes of reports: takes them in while hundreds arrive, and answers for the whole fleet.

SQLite works in one thread of its own. Reports that arrive while a commit is under way share the next one, so
that a burst from ten thousand devices costs a few fsyncs and not ten thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from driftseed.core.fleetview import fold_deployments, fold_devices
from driftseed.core.ids import DeviceId
from driftseed.core.model import Deployment
from driftseed.core.verified import VerifiedMember, VerifiedReport
from driftseed.hub.reports import KnownFleet, ReadReport, ReportStore, read_report
from driftseed.hub.views import DeploymentView, DeviceView, deployment_view, device_view

FOLD_KEPT_S: Final = 1.0
"""Seconds for which an answer about the whole fleet is given again, however many ask."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Kept:
    at: float
    known: KnownFleet


class FleetObserver:
    """The fleet, as its devices report it.

    Args:
        store: made in ``executor``'s thread; use ``open``.
        executor: of one thread.
        clock: seconds since 1970.
    """

    def __init__(self, store: ReportStore, executor: ThreadPoolExecutor, clock: Callable[[], float]) -> None:
        self._store = store
        self._executor = executor
        self._clock = clock
        self._reports: list[ReadReport] = []
        self._members: dict[DeviceId, VerifiedMember] = {}
        self._heard: dict[DeviceId, float] = {}
        self._written: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._kept: _Kept | None = None
        self.on_written: Callable[[], None] = lambda: None
        """Called after reports were written."""

    @classmethod
    async def open(cls, path: Path, clock: Callable[[], float]) -> FleetObserver:
        """Open the hub's database.

        Args:
            path: of the database; its directory must exist.
            clock: seconds since 1970.

        Raises:
            StoreDamaged, DiskFull: see ``store.database``.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="hub-reports")
        try:
            store = await asyncio.get_running_loop().run_in_executor(executor, ReportStore, path)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(store, executor, clock)

    async def add(self, report: VerifiedReport) -> None:
        """Take a report in: when it returns, this one or a newer one of the device is on the disk.

        Raises:
            ReportInvalid: its body is malformed or about another device; nothing was kept.
            DiskFull: it is not kept; the device sends it again.
        """
        read = read_report(report)
        self._heard[report.device] = self._clock()
        self._reports.append(read)
        await self._commit()

    async def add_from_hub(self, reports: Sequence[VerifiedReport]) -> None:
        """Take in what another hub has: like ``add``, but the devices were heard of when they say so, not now.

        Raises:
            ReportInvalid: one has a malformed body or is about another device; nothing was kept.
            DiskFull: nothing was kept.
        """
        read = [read_report(report) for report in reports]
        now = self._clock()
        for each in read:
            before = self._heard.get(each.signed.device, 0.0)
            self._heard[each.signed.device] = max(before, min(each.report.time, now))
        self._reports.extend(read)
        await self._commit()

    async def log_end(self) -> tuple[str, int]:
        """Name of the log of reports, and the number of its newest entry."""
        return await self._in_thread(self._store.log_end)

    async def logged(self, since: int, limit: int) -> list[tuple[int, bytes]]:
        """Reports logged after ``since``, the oldest first: number and envelope."""
        return await self._in_thread(lambda: self._store.logged(since, limit))

    async def member(self, member: VerifiedMember) -> None:
        """Note who a device is: call it whenever one has joined or proved its membership. Raises DiskFull."""
        self._heard[member.device] = self._clock()
        self._members[member.device] = member
        await self._commit()

    def heard(self, device: DeviceId) -> None:
        """Note that something was heard of a device; written with the next report."""
        self._heard[device] = self._clock()

    async def newest(self, device: DeviceId) -> tuple[int, bytes] | None:
        """Sequence and envelope of a device's newest report."""
        return await self._in_thread(lambda: self._store.newest(device))

    async def sequences(self) -> dict[DeviceId, int]:
        """Sequence of the newest report of every device."""
        return await self._in_thread(self._store.sequences)

    async def devices(self, connected: Mapping[str, str]) -> list[DeviceView]:
        """Every device, by id.

        Args:
            connected: kind of path by device id, of those that have a link to this hub.
        """
        known, now, heard = await self._known(), self._clock(), dict(self._heard)

        def fold() -> list[DeviceView]:
            members = [
                replace(each, heard_at=heard[each.device]) if each.device in heard else each
                for each in known.members
            ]
            return [
                device_view(
                    row, now=now, moved_at=known.moved_at.get(DeviceId(row.device)), connected=connected
                )
                for row in fold_devices(members, known.reports, now)
            ]

        return await self._in_thread(fold)

    async def deployments(self, deployments: Sequence[Deployment]) -> list[DeploymentView]:
        """Every deployment in force, by sequence, with how far its devices have got."""
        known = await self._known()

        def fold() -> list[DeploymentView]:
            return [
                deployment_view(row) for row in fold_deployments(deployments, known.members, known.reports)
            ]

        return await self._in_thread(fold)

    async def close(self) -> None:
        """Write what was heard, and close the database."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
        try:
            if self._heard:
                await self._in_thread(self._write([], [], self._take_heard()))
        finally:
            await self._in_thread(self._store.close)
            self._executor.shutdown()

    async def _commit(self) -> None:
        """Wait until all that is noted by now is on the disk."""
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        written = self._written
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="hub-reports")
        await asyncio.shield(written)

    async def _write_all(self) -> None:
        try:
            while (written := self._written) is not None:
                reports, self._reports = self._reports, []
                members, self._members = list(self._members.values()), {}
                self._written = None
                try:
                    await self._in_thread(self._write(reports, members, self._take_heard()))
                except Exception as error:  # noqa: BLE001 - goes to whoever waits, not to this task's owner
                    written.set_exception(error)
                    written.exception()  # seen: whoever waited may have been cancelled meanwhile
                else:
                    self._kept = None
                    written.set_result(None)
                    if reports:
                        self.on_written()
        finally:
            self._writer = None

    def _write(
        self,
        reports: Sequence[ReadReport],
        members: Sequence[VerifiedMember],
        heard: Mapping[DeviceId, float],
    ) -> Callable[[], None]:
        now = self._clock()
        return lambda: self._store.write(reports, members, heard, now)

    def _take_heard(self) -> dict[DeviceId, float]:
        heard, self._heard = self._heard, {}
        return heard

    async def _known(self) -> KnownFleet:
        now = asyncio.get_running_loop().time()
        if self._kept is None or now - self._kept.at > FOLD_KEPT_S:
            self._kept = _Kept(now, await self._in_thread(self._store.load))
        return self._kept.known

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
