"""What is done in each state of an install: call the module, check the device, ask for a reboot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import DiskFull, DriftseedError, ModuleFailed, RebootFailed, StoreDamaged
from driftseed.core.lifecycle import BY_STATE, Effect, Event
from driftseed.core.model import ReleaseManifest
from driftseed.core.updates import NO_FACTS, Facts, Reboot, UpdateRow
from driftseed.core.verified import VerifiedArtifact
from driftseed.install.health import installation, run_health_check
from driftseed.install.runner import ModuleRunner, parse_reboot, parse_yes_no
from driftseed.install.staging import stage
from driftseed.install.workdir import Workdir


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an effect."""

    event: Event
    reason: str = ""
    detail: str = ""
    facts: Facts = NO_FACTS


DONE: Final = Result(Event.DONE)


@dataclass(slots=True)
class Course:
    """One update on its way."""

    update: UpdateRow
    workdir: Workdir
    manifest: ReleaseManifest | None
    artifact: VerifiedArtifact | None
    unrecorded: DiskFull | None = None
    """Why the journal does not know of the last steps: they only lead back to where it says that we are."""

    @property
    def timeout_s(self) -> float:
        """Seconds that the module may take for one state, as the release says."""
        return limits.MODULE_TIMEOUT_S if self.manifest is None else self.manifest.module_timeout_s


class Effects:
    """Does what the table says is to be done.

    Args:
        runner: calls update modules.
        install_root: where releases go that do not say otherwise.
        reboot: asks for a reboot of the device.
        boot_id: changes with every boot.
    """

    def __init__(
        self,
        runner: ModuleRunner,
        install_root: Path,
        reboot: Callable[[], Awaitable[None]],
        boot_id: Callable[[], str],
    ) -> None:
        self._runner = runner
        self._install_root = install_root
        self._reboot = reboot
        self._boot_id = boot_id
        self._effects: dict[Effect, Callable[[Course], Awaitable[Result | None]]] = {
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

    async def perform(self, course: Course) -> Result | None:
        """Do what is to be done in this state; None when the device is about to reboot."""
        try:
            return await self._effects[BY_STATE[course.update.state].effect](course)
        except DriftseedError as error:
            return failure(error)
        except OSError as error:
            return failure(ModuleFailed(f"in {course.update.state}: {error}"))

    # --- the way to the new version -----------------------------------------------------------------

    async def _stage(self, course: Course) -> Result:
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
        return DONE

    async def _install(self, course: Course) -> Result:
        await self._call(course, "ArtifactInstall")
        return await self._after_change(course)

    async def _after_change(self, course: Course) -> Result:
        """Ask whether to reboot: only after ``ArtifactInstall`` or ``ArtifactRollback`` can a module know."""
        answer = parse_reboot(course.update.module, await self._ask(course, "NeedsArtifactReboot"))
        if answer is Reboot.NO:
            return Result(Event.DONE, facts=Facts(reboot=answer))
        return Result(Event.REBOOT, facts=Facts(reboot=answer, boot_id=self._boot_id()))

    async def _reboot_forward(self, course: Course) -> Result | None:
        return await self._restart(course, "ArtifactReboot")

    async def _restart(self, course: Course, state: str) -> Result | None:
        if course.update.reboot is Reboot.AUTOMATIC:
            if course.unrecorded is not None:
                raise course.unrecorded  # after a reboot nobody would know why it happened
            try:
                await self._reboot()
            except OSError as error:
                raise RebootFailed(f"the device cannot be rebooted: {error}") from error
            return None
        await self._call(course, state)
        return DONE

    async def _verify_reboot(self, course: Course) -> Result:
        await self._call(course, "ArtifactVerifyReboot")
        return DONE

    async def _probe(self, course: Course) -> Result:
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
        return DONE

    async def _commit(self, course: Course) -> Result:
        await self._call(course, "ArtifactCommit")
        return DONE

    async def _clean_up(self, course: Course) -> Result:
        # Without a tree there is nothing that a module could clean up in (Mender does the same).
        if course.workdir.exists:
            await self._call(course, "Cleanup")
        return DONE

    # --- the way back -------------------------------------------------------------------------------

    async def _check_rollback(self, course: Course) -> Result:
        question = "SupportsRollback"
        answer = await self._ask(course, question)
        if parse_yes_no(course.update.module, question, answer):
            return DONE
        return Result(
            Event.UNSUPPORTED, ModuleFailed.reason, f"{course.update.module} does not support rollback"
        )

    async def _roll_back(self, course: Course) -> Result:
        await self._call(course, "ArtifactRollback")
        return await self._after_change(course)

    async def _reboot_back(self, course: Course) -> Result | None:
        return await self._restart(course, "ArtifactRollbackReboot")

    async def _verify_rollback_reboot(self, course: Course) -> Result:
        try:
            await self._call(course, "ArtifactVerifyRollbackReboot")
        except DriftseedError as error:
            failed = course.update.rollback_reboots + 1
            exhausted = failed >= limits.ROLLBACK_REBOOTS_MAX
            return replace(
                failure(error),
                event=Event.EXHAUSTED if exhausted else Event.FAILED,
                facts=Facts(rollback_reboots=failed, boot_id=self._boot_id()),
            )
        return DONE

    async def _fail(self, course: Course) -> Result:
        await self._call(course, "ArtifactFailure")
        return DONE

    # --- calling the module -------------------------------------------------------------------------

    async def _call(self, course: Course, state: str) -> None:
        await self._runner.run(
            course.update.module,
            state,
            course.workdir.tree,
            course.timeout_s,
            self._environment(course.update),
        )

    async def _ask(self, course: Course, question: str) -> str:
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


def failure(error: DriftseedError) -> Result:
    """The result of an effect that raised this."""
    return Result(Event.FAILED, error.reason, error.message)
