"""Take a verified release through the lifecycle's table, from ``staging`` to its end.

A step is recorded before it is acted on, so an installer that is killed at any instant is taken up by
``resume`` in a new process, which ends in the old version or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from driftseed.core import limits
from driftseed.core.errors import (
    DiskFull,
    Interrupted,
    NotFound,
    RebootFailed,
    StoreDamaged,
)
from driftseed.core.lifecycle import BY_STATE, TERMINAL, Event, Phase, Row, State, step
from driftseed.core.updates import Reboot, UpdateJournal, UpdateRow
from driftseed.core.verified import VerifiedArtifact, VerifiedRelease
from driftseed.install.effects import DONE, Course, Effects, Result, failure
from driftseed.install.runner import ModuleRunner
from driftseed.install.workdir import Workdir, leftovers

_DETAIL_CHARS: Final = 4000
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FORGETS_HOW_TO_UNDO: Final = frozenset({State.CLEANING_ROLLED_BACK, State.CLEANING_INCONSISTENT})
"""States in which the means to undo are removed; not entered before that is recorded."""

OnTransition: TypeAlias = Callable[[UpdateRow, Row], None]
"""Called after each step with the update as it now is."""


def boot_id() -> str:
    """What the kernel calls the time between two boots."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class Installer:
    """Installs one update at a time.

    Args:
        journal: where every step is recorded.
        runner: calls update modules.
        run_dir: where they work.
        install_root: where releases go that do not say otherwise.
        reboot: asks for a reboot of the device; returns when that is under way. Raises OSError or a
            DriftseedError when it cannot.
        clock: now, seconds since 1970.
        on_transition: told of each step.
        device_type: what kind of device this is, for modules (its *compatible*).
        boot_id: changes with every boot.
    """

    def __init__(
        self,
        *,
        journal: UpdateJournal,
        runner: ModuleRunner,
        run_dir: Path,
        install_root: Path,
        reboot: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        on_transition: OnTransition,
        device_type: str = "",
        boot_id: Callable[[], str] = boot_id,
    ) -> None:
        self._journal = journal
        self._run_dir = run_dir
        self._clock = clock
        self._on_transition = on_transition
        self._device_type = device_type
        self._boot_id = boot_id
        self._one_at_a_time = asyncio.Lock()
        self._effects = Effects(runner, install_root, reboot, boot_id)

    async def install(
        self, deployment_id: str, release: VerifiedRelease, artifact: VerifiedArtifact
    ) -> State:
        """Install an update whose content was just verified.

        Args:
            deployment_id: the update; it must be in state ``verifying``.
            release: what the ``releases`` role signed.
            artifact: one of its artifacts, verified, on this device's disk.

        Returns:
            A terminal state; or ``rebooting`` or ``rollback-rebooting``: the device is about to reboot, and
            ``resume`` goes on after that.

        Raises:
            DiskFull: the journal or the working directory could not be written. Either nothing was begun and
                the update is still ``verifying``; or it was undone, and ``resume`` does the rest when there
                is space again.
            StoreDamaged: the working directory cannot be made; the update is still ``verifying``.
            NotFound: the journal has no such update.
            RuntimeError: the update is in another state, or artifact and release do not belong together.
        """
        if artifact.artifact not in release.manifest.artifacts:
            raise RuntimeError(f"{artifact.artifact.filename} is not an artifact of {release.manifest.name}")
        async with self._one_at_a_time:
            update = self._known(deployment_id)
            if update.state is not State.VERIFYING or update.manifest_sha256 != release.digest:
                raise RuntimeError(f"{deployment_id} is {update.state}, of manifest {update.manifest_sha256}")
            workdir = Workdir(self._run_dir, deployment_id)
            course = Course(update, workdir, release.manifest, artifact)
            self._prepare(course, release)
            self._record(course, DONE)
            return await self._drive(course)

    async def resume(self, deployment_id: str) -> State:
        """Go on with an update that was being installed when the agent ended, or undo it: the table says.

        It needs nothing but what was recorded. Updates in ``waiting``, ``downloading`` or ``verifying`` are
        the agent's own to go on with; for those this does nothing.

        Returns:
            See ``install``; for an update that is the agent's or over, the state that it is in.

        Raises:
            DiskFull, NotFound: see ``install``.
        """
        async with self._one_at_a_time:
            update = self._known(deployment_id)
            if BY_STATE[update.state].phase not in {Phase.INSTALLING, Phase.UNDOING}:
                return update.state
            workdir = Workdir(self._run_dir, deployment_id)
            try:
                manifest = workdir.manifest()
            except (OSError, ValueError):
                manifest = None  # what it is needed for fails, and is undone
            course = Course(update, workdir, manifest, None)
            self._record(course, self._interruption(update))
            return await self._drive(course)

    async def resume_all(self) -> dict[str, State]:
        """``resume`` everything that was being installed, and remove what nobody works in any more.

        Returns:
            The states that were reached, by deployment id.

        Raises:
            DiskFull: see ``install``; what comes after the update concerned was not looked at.
        """
        self.remove_leftovers()
        return {
            update.deployment_id: await self.resume(update.deployment_id)
            for update in self._journal.unfinished()
            if BY_STATE[update.state].phase in {Phase.INSTALLING, Phase.UNDOING}
        }

    def remove_leftovers(self) -> None:
        """Remove the working directories of updates that are not under way: a kill may have left some.

        Raises:
            OSError: one cannot be removed.
        """
        under_way = frozenset(update.deployment_id for update in self._journal.unfinished())
        for directory in leftovers(self._run_dir, under_way):
            Workdir(self._run_dir, directory.name).remove()

    # --- driving ------------------------------------------------------------------------------------

    async def _drive(self, course: Course) -> State:
        """Effect, record, effect, until it is over or the device reboots."""
        while course.update.state not in TERMINAL:
            if course.unrecorded is not None and course.update.state in _FORGETS_HOW_TO_UNDO:
                raise course.unrecorded
            result = await self._effects.perform(course)
            if result is None:
                return course.update.state
            self._record(course, result)
        # The update is over, whatever is left of its directory; remove_leftovers tries again.
        with contextlib.suppress(OSError):
            course.workdir.remove()
        if course.unrecorded is not None:
            raise course.unrecorded
        return course.update.state

    def _record(self, course: Course, result: Result) -> None:
        """Make a step, in the journal if there is space for it.

        When there is none, an update that is on its way to the new version turns back; one that is on its
        way back goes on (Mender does the same), up to where the means to undo would be removed: ``resume``
        undoes it once more, for the record. What is committed stays committed.

        Raises:
            DiskFull: nothing was done yet that would have to be undone.
        """
        update = course.update
        if course.unrecorded is None:
            try:
                row = self._journal.advance(
                    update.deployment_id,
                    result.event,
                    at=self._clock(),
                    reason=result.reason,
                    detail=result.detail[-_DETAIL_CHARS:],
                    facts=result.facts,
                )
            except DiskFull as error:
                if update.state is State.VERIFYING:
                    raise
                course.unrecorded = error
                if BY_STATE[update.state].phase is Phase.INSTALLING and update.state is not State.CLEANING:
                    result = failure(error)
            else:
                course.update = self._known(update.deployment_id)
                self._on_transition(course.update, row)
                return
        event = result.event
        if update.transitions >= limits.TRANSITIONS_MAX:
            event = Event.ABORTED
        facts = result.facts
        course.update = replace(
            update,
            state=step(update.state, event).next,
            transitions=update.transitions + 1,
            reboot=update.reboot if facts.reboot is None else facts.reboot,
            rollback_reboots=(
                update.rollback_reboots if facts.rollback_reboots is None else facts.rollback_reboots
            ),
        )

    def _interruption(self, update: UpdateRow) -> Result:
        """What it means that the agent found an update in this state."""
        rebooting = update.state in {State.REBOOTING, State.ROLLBACK_REBOOTING}
        if rebooting and update.reboot is Reboot.AUTOMATIC and update.boot_id == self._boot_id():
            if self._journal.history(update.deployment_id)[-1].event is Event.AGAIN:
                return failure(RebootFailed("the device was asked to reboot twice and did not"))
            return Result(Event.AGAIN)
        if rebooting or BY_STATE[update.state].phase is Phase.UNDOING or update.state is State.CLEANING:
            return Result(Event.INTERRUPTED)
        error = Interrupted(f"the device or the agent went down in {update.state}")
        return Result(Event.INTERRUPTED, error.reason, error.message)

    def _prepare(self, course: Course, release: VerifiedRelease) -> None:
        """Make the module's directory while the update is still ``verifying``: nothing of the module ran."""
        try:
            course.workdir.prepare(release, previous=course.update.previous, device_type=self._device_type)
        except DiskFull:
            course.workdir.remove()
            raise
        except OSError as error:
            raise StoreDamaged(
                f"{course.workdir.directory} cannot be written: {error}", hint="check the disk and its mount"
            ) from error

    def _known(self, deployment_id: str) -> UpdateRow:
        update = self._journal.update(deployment_id)
        if update is None:
            raise NotFound(f"no update of deployment {deployment_id}")
        return update
