"""From decision to installed: drives every update of one device through the lifecycle's table.

Decisions are ``core.policy``'s, steps ``core.lifecycle``'s, written to the journal before they are acted on;
this module runs what they say: fetch (``node.content``), verify (``trust``), install (``install``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from driftseed.core.errors import ContentMismatch, DiskFull, DriftseedError
from driftseed.core.ids import Digest
from driftseed.core.lifecycle import BY_STATE, TERMINAL, Event, Phase, State
from driftseed.core.policy import (
    Attempt,
    Decision,
    DeviceFacts,
    Go,
    History,
    Refuse,
    Satisfied,
    Wait,
    decide,
)
from driftseed.core.updates import UpdateRow
from driftseed.core.verified import VerifiedFleet
from driftseed.install.installer import Installer
from driftseed.node.content import Contents
from driftseed.node.tasks import TaskOwner
from driftseed.node.transfer import Transfer
from driftseed.store.journal import Journal

_log = logging.getLogger(__name__)

PROGRESS_NOTED_S: Final = 2.0
"""Seconds between notes of a download's progress in the journal: each costs an fsync."""
AT_WORK: Final = frozenset({Phase.INSTALLING, Phase.UNDOING})
"""Phases in which an update is the installer's, and goes on whatever is deployed meanwhile."""
RECONSIDER_S: Final = 60.0
"""Seconds after which a waiting decision is made again although no event called for it."""
LOOK_AGAIN_S: Final = 5.0
"""Likewise for what waits for space on the disk, or stopped for want of it: no event tells when there is some."""


class Updates:
    """All updates of one device.

    Args:
        journal: what is remembered.
        contents: fetching.
        installer: installing.
        facts: this device's, asked for at each decision.
        clock: seconds since 1970.
        on_change: called whenever something is to be reported.
        on_failure: told when deciding fails for good.
    """

    def __init__(
        self,
        journal: Journal,
        contents: Contents,
        installer: Installer,
        facts: Callable[[], DeviceFacts],
        clock: Callable[[], float],
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._journal = journal
        self._contents = contents
        self._installer = installer
        self._facts = facts
        self._clock = clock
        self._on_change = on_change
        self._fleet: VerifiedFleet | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._to_resume = {
            row.deployment_id for row in journal.unfinished() if BY_STATE[row.state].phase in AT_WORK
        }
        """Updates at which a module was at work when the agent ended, or that could not go on for want of space."""
        self._tasks = TaskOwner("updates")
        self._vital = TaskOwner("updates", on_failure)
        self._look = asyncio.Event()
        self._noted: dict[str, float] = {}
        self._fetched_before = {row.deployment_id: Counter(row.bytes_from) for row in journal.unfinished()}
        self.held_back: dict[str, Wait | Refuse] = {}
        """What is not being done, by deployment id, and why."""
        self.stopped: dict[str, DriftseedError] = {}
        """What cannot go on for the moment although it is being done, likewise."""

    def start(self) -> None:
        """Go on with what was under way, and decide whenever something changes."""
        self._contents.on_change = self._transfer_changed
        self._pin()
        self._vital.spawn(self._decide_forever(), "decide")

    async def close(self) -> None:
        """Stop where it is: the journal knows how to go on."""
        await self._vital.close()
        await self._tasks.close()

    def fleet_changed(self, fleet: VerifiedFleet) -> None:
        """Newer metadata is trusted."""
        self._fleet = fleet
        self._look.set()

    def reconsider(self) -> None:
        """A fact changed."""
        self._look.set()

    # --- deciding -------------------------------------------------------------------------------

    def _history(self) -> History:
        attempts = {
            row.deployment_id: Attempt(row.state, row.attempts, row.reason, row.changed)
            for row in self._journal.updates()
            if row.state is not State.CANCELLED
        }
        return History(installed=self._journal.installed(), attempts=attempts)

    async def _decide_forever(self) -> None:
        while True:
            self._go_on()
            self._look.clear()
            try:
                until = await self._consider()
            except DiskFull as error:
                _log.error("cannot decide", extra={"fields": {"why": error.message}})
                until = self._clock() + LOOK_AGAIN_S
            wait_s = RECONSIDER_S if until is None else min(max(until - self._clock(), 0.05), RECONSIDER_S)
            try:
                async with asyncio.timeout(wait_s):
                    await self._look.wait()
            except TimeoutError:
                continue

    def _go_on(self) -> None:
        """Have the installer take up what it was at."""
        for deployment_id in sorted(self._to_resume - self._running.keys()):
            self._to_resume.discard(deployment_id)
            row = self._journal.update(deployment_id)
            if row is not None and BY_STATE[row.state].phase in AT_WORK:
                self._track(deployment_id, self._resume(deployment_id))

    async def _consider(self) -> float | None:
        """Decide about everything once; returns when to do so again, if that is known."""
        fleet = self._fleet
        if fleet is None:
            return None
        decisions = decide(fleet, self._facts(), self._history(), self._clock())
        await self._cancel_unwanted(decisions)
        held_back: dict[str, Wait | Refuse] = {}
        due: list[float] = []
        for decision in decisions:
            deployment_id = decision.deployment.deployment.id
            match decision:
                case Go() if deployment_id not in self._running:
                    self._begin(decision)
                case Wait(until=until):
                    held_back[deployment_id] = decision
                    due.append(self._clock() + LOOK_AGAIN_S if until is None else until)
                case Refuse():
                    held_back[deployment_id] = decision
                case Go() | Satisfied():
                    pass
        if _said(held_back) != _said(self.held_back):
            for decision in held_back.values():
                fields = {"release": decision.deployment.deployment.release, "reason": decision.reason}
                _log.info("held back", extra={"fields": {**fields, "detail": decision.detail}})
            self.held_back = held_back
            self._on_change()
        return min(due, default=None)

    async def _cancel_unwanted(self, decisions: tuple[Decision, ...]) -> None:
        """End what no deployment asks for any more, unless a module is at work on it."""
        wanted = {each.deployment.deployment.id for each in decisions if isinstance(each, Go | Wait)}
        for row in self._journal.unfinished():
            if row.deployment_id in wanted or BY_STATE[row.state].phase is not Phase.FETCHING:
                continue
            task = self._running.pop(row.deployment_id, None)
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
            self._step(row.deployment_id, Event.CANCELLED, "superseded", "no deployment asks for it any more")
            others = {each.artifact_sha256 for each in self._journal.unfinished()}
            if row.artifact_sha256 not in others:
                await self._contents.abandon(Digest(row.artifact_sha256))

    def _begin(self, go: Go) -> None:
        deployment = go.deployment.deployment
        row = self._journal.update(deployment.id)
        if row is None or BY_STATE[row.state].phase not in AT_WORK:
            self._track(deployment.id, self._run(go))

    def _track(self, deployment_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.spawn(work, deployment_id[:8])
        if task is not None:
            self._running[deployment_id] = task
            task.add_done_callback(lambda done: self._ended(deployment_id, done))

    def _ended(self, deployment_id: str, task: asyncio.Task[None]) -> None:
        if self._running.get(deployment_id) is task:
            del self._running[deployment_id]
        self.stopped.pop(deployment_id, None)
        self._look.set()

    # --- one update -----------------------------------------------------------------------------

    async def _run(self, go: Go) -> None:
        deployment_id = go.deployment.deployment.id
        try:
            row = self._row(go)
            await self._fetch(go, row.deployment_id)
        except DriftseedError as error:
            await self._stop(deployment_id, error)
        self._pin()

    def _row(self, go: Go) -> UpdateRow:
        """The journal's row of a deployment: the one under way, or a new attempt's."""
        deployment, manifest = go.deployment.deployment, go.deployment.release.manifest
        before = self._journal.update(deployment.id)
        if before is not None and before.state not in TERMINAL:
            return before
        installed = self._journal.installed().get(deployment.release)
        now = self._clock()
        return self._journal.begin(
            UpdateRow(
                deployment_id=deployment.id,
                release=deployment.release,
                version=deployment.version,
                manifest_sha256=go.deployment.release.digest,
                module=manifest.module,
                artifact_sha256=go.artifact.sha256,
                artifact_length=go.artifact.length,
                artifact_filename=go.artifact.filename,
                attempts=1 if before is None else before.attempts + 1,
                started=now,
                changed=now,
                previous=installed.version if installed else None,
            )
        )

    def _step(self, deployment_id: str, event: Event, reason: str = "", detail: str = "") -> None:
        row = self._journal.advance(deployment_id, event, at=self._clock(), reason=reason, detail=detail)
        _log.info(
            "update",
            extra={
                "fields": {"deployment": deployment_id, "from": row.state, "to": row.next, "reason": reason}
            },
        )
        self._on_change()

    async def _fetch(self, go: Go, deployment_id: str) -> None:
        """From ``waiting`` or wherever a restart found it, to verified content, and on to installing."""
        state = self._state(deployment_id)
        if state is State.WAITING:
            self._step(deployment_id, Event.START)
        elif (
            state is State.VERIFYING
            and self._contents.obtain(go.deployment.release, go.artifact).arrived.done()
        ):
            await self._verify(go, deployment_id)
            return
        elif state is State.VERIFYING:
            # The content was evicted or lost meanwhile: it is fetched again.
            self._step(deployment_id, Event.POSTPONED)
            self._step(deployment_id, Event.START)
        transfer = self._contents.obtain(go.deployment.release, go.artifact)
        await transfer.arrived
        self._note(transfer, deployment_id)
        self._step(deployment_id, Event.DONE)
        await self._verify(go, deployment_id)

    async def _verify(self, go: Go, deployment_id: str) -> None:
        try:
            verified = await self._contents.verify(go.artifact)
        except ContentMismatch as error:
            self._step(deployment_id, Event.FAILED, error.reason, error.message)
            return
        except DriftseedError as error:
            self._step(deployment_id, Event.POSTPONED, error.reason, error.message)
            await asyncio.sleep(LOOK_AGAIN_S)
            return
        self._contents.store.pin(Digest(go.artifact.sha256))
        await self._installer.install(deployment_id, go.deployment.release, verified)

    async def _resume(self, deployment_id: str) -> None:
        """Go on with an update that was being installed or undone: the journal says how."""
        try:
            await self._installer.resume(deployment_id)
        except DriftseedError as error:
            await self._stop(deployment_id, error)
        self._pin()

    async def _stop(self, deployment_id: str, error: DriftseedError) -> None:
        """What could not even be written down is tried again, after a while."""
        _log.error(
            "update stopped",
            extra={"fields": {"deployment": deployment_id, "reason": error.reason, "detail": error.message}},
        )
        self._to_resume.add(deployment_id)
        self.stopped[deployment_id] = error
        self._on_change()
        await asyncio.sleep(LOOK_AGAIN_S)

    def _state(self, deployment_id: str) -> State:
        row = self._journal.update(deployment_id)
        return State.CANCELLED if row is None else row.state

    # --- progress -------------------------------------------------------------------------------

    def _transfer_changed(self, transfer: Transfer) -> None:
        now = self._clock()
        for row in self._journal.unfinished():
            if row.artifact_sha256 != transfer.sha256 or row.state is not State.DOWNLOADING:
                continue
            if now - self._noted.get(row.deployment_id, 0.0) >= PROGRESS_NOTED_S:
                self._noted[row.deployment_id] = now
                try:
                    self._note(transfer, row.deployment_id)
                except DiskFull as error:
                    # Only the figure is lost: the engine knows what it has when it starts again.
                    _log.warning("progress is not kept", extra={"fields": {"why": error.message}})
        self._on_change()

    def _sources(self, transfer: Transfer, deployment_id: str) -> Mapping[str, int]:
        """Where the bytes came from, those before the agent was started again included."""
        return self._fetched_before.get(deployment_id, Counter()) + self._contents.swarming.sources(
            transfer.sha256
        )

    def _note(self, transfer: Transfer, deployment_id: str) -> None:
        self._journal.note_progress(
            deployment_id,
            transfer.artifact.length if transfer.arrived.done() else transfer.done,
            self._sources(transfer, deployment_id),
        )

    def live(self, row: UpdateRow) -> tuple[UpdateRow, Transfer | None]:
        """A row with what the journal need not know yet."""
        transfer = self._contents.transfer(Digest(row.artifact_sha256))
        if row.state is not State.DOWNLOADING or transfer is None:
            return row, None
        sources = self._sources(transfer, row.deployment_id)
        return replace(row, bytes_done=transfer.done, bytes_from=sources), transfer

    def _pin(self) -> None:
        """What is installed or being installed is never evicted."""
        wanted = {Digest(each.artifact_sha256) for each in self._journal.installed().values()}
        wanted |= {Digest(each.artifact_sha256) for each in self._journal.unfinished()}
        store = self._contents.store
        for digest in store.pins - wanted:
            store.unpin(digest)
        for digest in wanted:
            store.pin(digest)


def _said(held_back: Mapping[str, Wait | Refuse]) -> dict[str, tuple[str, str]]:
    return {key: (each.reason, each.detail) for key, each in held_back.items()}
