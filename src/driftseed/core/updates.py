"""What a device remembers about its updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from driftseed.core.lifecycle import Event, Row, State
from driftseed.core.policy import Installed


class Reboot(StrEnum):
    """A module's answer to ``NeedsArtifactReboot`` (the spelling is the protocol's)."""

    NO = "No"
    YES = "Yes"
    """It reboots something itself, when called with ``ArtifactReboot``."""
    AUTOMATIC = "Automatic"
    """The agent reboots the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """One deployment on this device, as the journal has it. Times are seconds since 1970."""

    deployment_id: str
    release: str
    version: str
    manifest_sha256: str
    module: str
    artifact_sha256: str
    artifact_length: int
    """Bytes."""
    artifact_filename: str
    state: State = State.WAITING
    attempts: int = 1
    """How many times it was tried, this time included."""
    transitions: int = 0
    """Steps of this attempt since ``staging``, of which there may be ``limits.TRANSITIONS_MAX``."""
    reboot: Reboot = Reboot.NO
    boot_id: str = ""
    """The boot in which the agent asked for the last reboot."""
    rollback_reboots: int = 0
    """Reboots into the old version that did not bring it up."""
    bytes_done: int = 0
    """Bytes of the artifact that are here and verified piece by piece."""
    bytes_from: Mapping[str, int] = field(default_factory=dict)
    """Where they came from: ``hub/direct``, ``peers/lan`` and so on, in bytes."""
    reason: str = ""
    """Token of the first thing that went wrong in this attempt, or of what it waits for."""
    detail: str = ""
    """The same in words."""
    started: float = 0.0
    changed: float = 0.0
    finished: float | None = None
    previous: str | None = None
    """Version of this release that was installed when the attempt began."""

    @property
    def progress(self) -> float:
        """Share of the artifact that is here, 0 to 1."""
        return min(1.0, self.bytes_done / self.artifact_length) if self.artifact_length else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of one update."""

    deployment_id: str
    state: State
    event: Event
    next: State
    at: float
    """Seconds since 1970."""
    attempt: int = 1
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is remembered together with a step; None leaves it as it was."""

    reboot: Reboot | None = None
    boot_id: str | None = None
    rollback_reboots: int | None = None


NO_FACTS: Final = Facts()


@dataclass(frozen=True, slots=True)
class InstalledRelease(Installed):
    """What is installed under a release name, with what the journal knows beside the policy's view."""

    release: str
    artifact_sha256: str
    """Never evicted from the content store while it is installed."""
    at: float
    """When it was committed, seconds since 1970."""


class UpdateJournal(Protocol):
    """What an installer needs of the journal; ``store.journal.Journal`` is one, and says more."""

    def update(self, deployment_id: str) -> UpdateRow | None:
        """One update, or None."""

    def unfinished(self) -> list[UpdateRow]:
        """Updates that are under way."""

    def history(self, deployment_id: str) -> list[Transition]:
        """The steps of an update, in order."""

    def advance(
        self,
        deployment_id: str,
        event: Event,
        *,
        at: float,
        reason: str = "",
        detail: str = "",
        facts: Facts = NO_FACTS,
    ) -> Row:
        """Look the event up in the table and record the step, durably, before it returns."""
