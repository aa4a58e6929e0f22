"""Take a verified release through the lifecycle's table, from ``staging`` to its end.

A step is recorded before it is acted on, so an installer that is killed at any instant is taken up by
``resume`` in a new process, which ends in the old version or the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from driftseed.core import limits
from driftseed.core.errors import (
    DiskFull,
    DriftseedError,
    Interrupted,
    ModuleFailed,
    NotFound,
    RebootFailed,
    StoreDamaged,
)
from driftseed.core.lifecycle import BY_STATE, TERMINAL, Effect, Event, Phase, Row, State, step
from driftseed.core.model import ReleaseManifest
from driftseed.core.updates import NO_FACTS, Facts, Reboot, UpdateJournal, UpdateRow
from driftseed.core.verified import VerifiedArtifact, VerifiedRelease
from driftseed.install.health import installation, run_health_check
from driftseed.install.runner import ModuleRunner, parse_reboot, parse_yes_no
from driftseed.install.staging import stage
from driftseed.install.workdir import Workdir, leftovers

_DETAIL_CHARS: Final = 4000
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

OnTransition: TypeAlias = Callable[[UpdateRow, Row], None]
"""Called after each step with the update as it now is."""


def boot_id() -> str:
    """What the kernel calls the time between two boots."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of an effect."""

    event: Event
    reason: str = ""
    detail: str = ""
    facts: Facts = NO_FACTS


_FORGETS_HOW_TO_UNDO: Final = frozenset({State.CLEANING_ROLLED_BACK, State.CLEANING_INCONSISTENT})
"""States after which nothing can be undone any more; not entered before that is recorded."""

_DONE: Final = _Result(Event.DONE)


@dataclass(slots=True)
class _Course:
    """One update on its way."""

    update: UpdateRow
    workdir: Workdir
    manifest: ReleaseManifest | None
    artifact: VerifiedArtifact | None
    unrecorded: DiskFull | None = None
    """Why the journal does not know of the last steps: they only lead back to where it says that we are."""

    @property
    def timeout_s(self) -> float:
        return limits.MODULE_TIMEOUT_S if self.manifest is None else self.manifest.module_timeout_s


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
        self._runner = runner
        self._run_dir = run_dir
        self._install_root = install_root
        self._reboot = reboot
        self._clock = clock
        self._on_transition = on_transition
        self._device_type = device_type
        self._boot_id = boot_id
        self._one_at_a_time = asyncio.Lock()
        self._effects: dict[Effect, Callable[[_Course], Awaitable[_Result | None]]] = {
            Effect.STAGE: self._stage,
            Effect.INSTALL: self._install,
            Effect.REBOOT: self._reboot_forward,
            Effect.VERIFY_REBOOT: self._verify_reboot,
            Effect.PROBE: self._probe,
            Effect.COMMIT: self._commit,
            Effect.CLEAN_UP: self._clean_up,
            Effect.CHECK_ROLLBACK: self._check_rollback,
            Effect.ROLL_BACK: self._roll_back,
            Effect.ROLLBACK_REBOOT: self._reboot_back,
            Effect.VERIFY_ROLLBACK_REBOOT: self._verify_rollback_reboot,
            Effect.FAIL: self._fail,
        }

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
            course = _Course(update, workdir, release.manifest, artifact)
            self._prepare(course, release)
            self._record(course, _DONE)
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
            course = _Course(update, workdir, manifest, None)
            self._record(course, self._interruption(update))
            return await self._drive(course)

    async def resume_all(self) -> dict[str, State]:
        """``resume`` everything that was being installed, and remove what nobody works in any more.

        Returns:
            The states that were reached, by deployment id.

        Raises:
            DiskFull: see ``install``; what comes after the update concerned was not looked at.
        """
        unfinished = self._journal.unfinished()
        for directory in leftovers(self._run_dir, frozenset(update.deployment_id for update in unfinished)):
            Workdir(self._run_dir, directory.name).remove()
        return {
            update.deployment_id: await self.resume(update.deployment_id)
            for update in unfinished
            if BY_STATE[update.state].phase in {Phase.INSTALLING, Phase.UNDOING}
        }

    # --- driving ------------------------------------------------------------------------------------

    async def _drive(self, course: _Course) -> State:
        """Effect, record, effect, until it is over or the device reboots."""
        while course.update.state not in TERMINAL:
            if course.unrecorded is not None and course.update.state in _FORGETS_HOW_TO_UNDO:
                raise course.unrecorded
            result = await self._perform(course)
            if result is None:
                return course.update.state
            self._record(course, result)
        try:
            course.workdir.remove()
        except OSError as error:
            # resume_all tries again at the next start; the update itself is over.
            course.update = replace(course.update, detail=course.update.detail or f"left behind: {error}")
        if course.unrecorded is not None:
            raise course.unrecorded
        return course.update.state

    async def _perform(self, course: _Course) -> _Result | None:
        """Do what is to be done in this state; None when the device is about to reboot."""
        try:
            return await self._effects[BY_STATE[course.update.state].effect](course)
        except DriftseedError as error:
            return _failure(error)
        except OSError as error:
            return _failure(ModuleFailed(f"in {course.update.state}: {error}"))

    def _record(self, course: _Course, result: _Result) -> None:
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
                    result = _failure(error)
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

    def _interruption(self, update: UpdateRow) -> _Result:
        """What it means that the agent found an update in this state."""
        rebooting = update.state in {State.REBOOTING, State.ROLLBACK_REBOOTING}
        if rebooting and update.reboot is Reboot.AUTOMATIC and update.boot_id == self._boot_id():
            if self._journal.history(update.deployment_id)[-1].event is Event.AGAIN:
                return _failure(RebootFailed("the device was asked to reboot twice and did not"))
            return _Result(Event.AGAIN)
        if rebooting or BY_STATE[update.state].phase is Phase.UNDOING or update.state is State.CLEANING:
            return _Result(Event.INTERRUPTED)
        error = Interrupted(f"the device or the agent went down in {update.state}")
        return _Result(Event.INTERRUPTED, error.reason, error.message)

    def _prepare(self, course: _Course, release: VerifiedRelease) -> None:
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

    # --- the way to the new version -----------------------------------------------------------------

    async def _stage(self, course: _Course) -> _Result:
        if course.artifact is None:
            raise RuntimeError("staging without content: the table resumes elsewhere")
        await stage(
            self._runner,
            course.update.module,
            course.workdir,
            course.artifact,
            course.timeout_s,
            self._environment(course.update),
        )
        return _DONE

    async def _install(self, course: _Course) -> _Result:
        await self._call(course, "ArtifactInstall")
        return await self._after_change(course)

    async def _after_change(self, course: _Course) -> _Result:
        """Ask whether to reboot: only after ``ArtifactInstall`` or ``ArtifactRollback`` can a module know."""
        answer = parse_reboot(course.update.module, await self._ask(course, "NeedsArtifactReboot"))
        if answer is Reboot.NO:
            return _Result(Event.DONE, facts=Facts(reboot=answer))
        return _Result(Event.REBOOT, facts=Facts(reboot=answer, boot_id=self._boot_id()))

    async def _reboot_forward(self, course: _Course) -> _Result | None:
        return await self._restart(course, "ArtifactReboot")

    async def _restart(self, course: _Course, state: str) -> _Result | None:
        if course.update.reboot is Reboot.AUTOMATIC:
            if course.unrecorded is not None:
                raise course.unrecorded  # after a reboot nobody would know why it happened
            try:
                await self._reboot()
            except OSError as error:
                raise RebootFailed(f"the device cannot be rebooted: {error}") from error
            return None
        await self._call(course, state)
        return _DONE

    async def _verify_reboot(self, course: _Course) -> _Result:
        await self._call(course, "ArtifactVerifyReboot")
        return _DONE

    async def _probe(self, course: _Course) -> _Result:
        if course.manifest is None:
            raise StoreDamaged(
                f"{course.workdir.directory}/release.json cannot be read: nobody knows how to check the device",
                hint="check the disk",
            )
        if course.manifest.health is not None:
            place = installation(self._install_root, course.update.release, course.manifest.meta)
            await run_health_check(
                course.manifest.health,
                directory=place,
                environment=self._runner.environment(self._environment(course.update)),
                lock=self._runner.lock,
            )
        return _DONE

    async def _commit(self, course: _Course) -> _Result:
        await self._call(course, "ArtifactCommit")
        return _DONE

    async def _clean_up(self, course: _Course) -> _Result:
        # Without a tree there is nothing that a module could clean up in (Mender does the same).
        if course.workdir.exists:
            await self._call(course, "Cleanup")
        return _DONE

    # --- the way back -------------------------------------------------------------------------------

    async def _check_rollback(self, course: _Course) -> _Result:
        question = "SupportsRollback"
        answer = await self._ask(course, question)
        if parse_yes_no(course.update.module, question, answer):
            return _DONE
        return _Result(
            Event.UNSUPPORTED, ModuleFailed.reason, f"{course.update.module} does not support rollback"
        )

    async def _roll_back(self, course: _Course) -> _Result:
        await self._call(course, "ArtifactRollback")
        return await self._after_change(course)

    async def _reboot_back(self, course: _Course) -> _Result | None:
        return await self._restart(course, "ArtifactRollbackReboot")

    async def _verify_rollback_reboot(self, course: _Course) -> _Result:
        try:
            await self._call(course, "ArtifactVerifyRollbackReboot")
        except DriftseedError as error:
            failed = course.update.rollback_reboots + 1
            exhausted = failed >= limits.ROLLBACK_REBOOTS_MAX
            return replace(
                _failure(error),
                event=Event.EXHAUSTED if exhausted else Event.FAILED,
                facts=Facts(rollback_reboots=failed, boot_id=self._boot_id()),
            )
        return _DONE

    async def _fail(self, course: _Course) -> _Result:
        await self._call(course, "ArtifactFailure")
        return _DONE

    # --- calling the module -------------------------------------------------------------------------

    async def _call(self, course: _Course, state: str) -> None:
        await self._runner.run(
            course.update.module,
            state,
            course.workdir.tree,
            course.timeout_s,
            self._environment(course.update),
        )

    async def _ask(self, course: _Course, question: str) -> str:
        return await self._runner.ask(
            course.update.module,
            question,
            course.workdir.tree,
            course.timeout_s,
            self._environment(course.update),
        )

    @staticmethod
    def _environment(update: UpdateRow) -> dict[str, str]:
        return {
            "DRIFTSEED_DEPLOYMENT": update.deployment_id,
            "DRIFTSEED_RELEASE": update.release,
            "DRIFTSEED_VERSION": update.version,
            "DRIFTSEED_PREVIOUS_VERSION": update.previous or "",
            "DRIFTSEED_ARTIFACT_SHA256": update.artifact_sha256,
        }


def _failure(error: DriftseedError) -> _Result:
    return _Result(Event.FAILED, error.reason, error.message)
