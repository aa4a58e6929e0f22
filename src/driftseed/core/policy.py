"""What a device does about the deployments it trusts: a pure function of what is known.

``decide`` reads signed documents, the device's facts, its history and the clock, and says for each release
name: go, wait, refuse, or satisfied. It raises nothing, so that one bad document stops nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

from driftseed.core import limits
from driftseed.core.errors import (
    AmbiguousVariant,
    ClockWrong,
    ContentMismatch,
    DiskFull,
    EngineFailed,
    FileMissing,
    Interrupted,
    LinkClosed,
    MetadataExpired,
    ModuleMissing,
    NoVariant,
    PeerMisbehaved,
    PeerStalled,
    PeerUnreachable,
    RebootFailed,
    SelectorError,
    TransportError,
)
from driftseed.core.ids import DeviceId
from driftseed.core.model import Artifact
from driftseed.core.selectors import Selector, parse_selector
from driftseed.core.verified import VerifiedDeployment, VerifiedFleet, VerifiedRelease
from driftseed.core.versions import compare_versions

DOWNGRADE: Final = "downgrade"
"""Reason: the release is older than what is installed, and the deployment does not allow that."""
ATTEMPTS_EXHAUSTED: Final = "attempts-exhausted"
"""Reason: this deployment failed here in a way that trying again does not mend, or too often."""
RETRY_LATER: Final = "retry-later"
"""Reason: this deployment failed here for a passing reason and is tried again."""

FAILED_STATES: Final = frozenset({"failed", "rolled-back", "inconsistent"})
"""Ends of an attempt other than success; in any other state an attempt is under way."""

CIRCUMSTANCES: Final = frozenset(
    kind.reason
    for kind in (
        ClockWrong,
        DiskFull,
        FileMissing,
        LinkClosed,
        MetadataExpired,
        PeerMisbehaved,
        PeerStalled,
        PeerUnreachable,
        TransportError,
    )
)
"""Failures that say nothing about the release: retried for as long as it takes, as devices are often
offline for longer than any number of attempts lasts."""

TRANSIENT: Final = frozenset(
    kind.reason for kind in (ContentMismatch, EngineFailed, Interrupted, RebootFailed)
)
"""Failures that may pass but should not be repeated for ever: ``limits.ATTEMPTS_MAX`` attempts in all."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device knows of itself."""

    device: DeviceId
    inventory: Mapping[str, str]
    """What it says of itself."""
    labels: Mapping[str, str]
    """What operators say of it, from its membership certificate."""
    modules: frozenset[str]
    """Update modules that are installed."""
    free_bytes: int
    held: frozenset[str] = frozenset()
    """SHA-256 of artifacts that are on the disk already and need no more space."""

    @property
    def values(self) -> Mapping[str, str]:
        """What selectors see: signed labels win over the inventory, and the key over both."""
        return {**self.inventory, **self.labels, "device.id": self.device}


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed under a release name."""

    version: str
    manifest_sha256: str
    deployment: str
    """Id of the deployment by which it came."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt at a deployment."""

    state: str
    """A lifecycle state."""
    attempts: int
    """How many there were, this one included."""
    reason: str
    """Why it failed; empty when it did not."""
    at: float
    """When it came into this state, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class History:
    """What a device has installed and tried."""

    installed: Mapping[str, Installed] = field(default_factory=dict)
    """By release name."""
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    """By deployment id."""


@dataclass(frozen=True, slots=True)
class Go:
    """Fetch this artifact and install it, or go on doing so."""

    deployment: VerifiedDeployment
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now."""

    deployment: VerifiedDeployment
    reason: str
    detail: str
    until: float | None
    """Seconds since 1970 at which to decide again; None: when the facts change."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not, unless something is signed anew or the device changes."""

    deployment: VerifiedDeployment
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Satisfied:
    """The device has this release already."""

    deployment: VerifiedDeployment


Decision: TypeAlias = Go | Wait | Refuse | Satisfied


def choose_variant(release: VerifiedRelease, values: Mapping[str, str]) -> Artifact:
    """The artifact of a release that is for a device.

    Of several that match, the one whose selector has the most requirements counts.

    Args:
        release: what both roles agreed on.
        values: ``DeviceFacts.values``.

    Raises:
        NoVariant: none matches.
        AmbiguousVariant: two or more match and are equally specific.
        SelectorError: one of the release's selectors does not parse, so that nobody can say which fits.
    """
    manifest = release.manifest
    selectors = [(_parsed(artifact.selector), artifact) for artifact in manifest.artifacts]
    fitting = [(selector, artifact) for selector, artifact in selectors if selector.matches(values)]
    if not fitting:
        asked = sorted({key for selector, _ in selectors for key in selector.keys})
        said = ", ".join(f"{key}={values[key]}" if key in values else f"no {key}" for key in asked)
        raise NoVariant(
            f"{manifest.name} {manifest.version} has no artifact for this device ({said})",
            hint="release it again with an artifact whose selector fits, or deploy it to other devices",
        )
    most = max(selector.specificity for selector, _ in fitting)
    best = [(selector, artifact) for selector, artifact in fitting if selector.specificity == most]
    if len(best) > 1:
        named = " and ".join(
            f"{artifact.filename} ({str(selector) or 'all devices'})" for selector, artifact in best
        )
        raise AmbiguousVariant(
            f"{manifest.name} {manifest.version} has artifacts that fit this device equally well: {named}",
            hint="make one of their selectors more specific",
        )
    return best[0][1]


def decide(fleet: VerifiedFleet, facts: DeviceFacts, history: History, now: float) -> tuple[Decision, ...]:
    """What to do, one decision for each release name that is addressed to this device.

    Of several deployments of one release name, the one with the highest sequence counts. One whose selector
    does not parse might be meant for this device: it is refused, and holds back the older ones, as the
    operators meant to replace them.

    Args:
        fleet: all deployments in force.
        facts: about this device.
        history: what it has installed and tried.
        now: seconds since 1970.

    Returns:
        Decisions in the order of the deployments' sequences.
    """
    values = facts.values
    newest: dict[str, tuple[VerifiedDeployment, SelectorError | None]] = {}
    for deployment in sorted(
        fleet.deployments, key=lambda each: (each.deployment.sequence, each.deployment.id)
    ):
        unreadable: SelectorError | None = None
        try:
            if not _parsed(deployment.deployment.selector).matches(values):
                continue
        except SelectorError as error:
            unreadable = error
        newest.pop(deployment.deployment.release, None)
        newest[deployment.deployment.release] = (deployment, unreadable)
    return tuple(
        _decide_one(_Case(deployment, fleet, facts, history, now))
        if unreadable is None
        else Refuse(deployment, unreadable.reason, f"the deployment's selector: {unreadable.message}")
        for deployment, unreadable in newest.values()
    )


def retry_at(attempt: Attempt) -> float:
    """When a failed attempt may be repeated, seconds since 1970: the wait doubles with every attempt."""
    doublings = min(max(attempt.attempts - 1, 0), 32)
    return attempt.at + min(limits.RETRY_BASE_S * 2.0**doublings, limits.RETRY_MAX_S)


@dataclass(frozen=True, slots=True)
class _Case:
    """One deployment that is addressed to this device, and all that bears on it."""

    deployment: VerifiedDeployment
    fleet: VerifiedFleet
    facts: DeviceFacts
    history: History
    now: float

    @property
    def installed(self) -> Installed | None:
        return self.history.installed.get(self.deployment.deployment.release)

    @property
    def attempt(self) -> Attempt | None:
        return self.history.attempts.get(self.deployment.deployment.id)


def _decide_one(case: _Case) -> Decision:
    """The first thing that stands in the way counts."""
    for obstacle in _obstacles_to_any(case):
        return obstacle
    try:
        artifact = choose_variant(case.deployment.release, case.facts.values)
    except (NoVariant, AmbiguousVariant) as error:
        return Refuse(case.deployment, error.reason, error.message)
    except SelectorError as error:
        return Refuse(case.deployment, error.reason, f"the selector of an artifact: {error.message}")
    for obstacle in _obstacles_to(artifact, case):
        return obstacle
    return Go(case.deployment, artifact)


def _obstacles_to_any(case: _Case) -> Iterator[Wait | Refuse | Satisfied]:
    """What settles a deployment whatever its artifacts are."""
    installed, attempt = case.installed, case.attempt
    if installed is not None and installed.manifest_sha256 == case.deployment.release.digest:
        yield Satisfied(case.deployment)
    if case.fleet.expires < case.now:
        yield Refuse(
            case.deployment,
            MetadataExpired.reason,
            f"the metadata expired {case.now - case.fleet.expires:.0f} s ago by this device's clock: "
            "either nothing newer has come, or the clock is wrong",
        )
    if attempt is not None and attempt.state in FAILED_STATES:
        yield from _after_failure(case.deployment, attempt, case.now)


def _obstacles_to(artifact: Artifact, case: _Case) -> Iterator[Wait | Refuse]:
    """What keeps the artifact that fits from being fetched and installed."""
    manifest, installed, facts = case.deployment.release.manifest, case.installed, case.facts
    if (
        installed is not None
        and not case.deployment.deployment.allow_downgrade
        and compare_versions(manifest.version, installed.version) < 0
    ):
        yield Refuse(
            case.deployment,
            DOWNGRADE,
            f"{manifest.version} is older than the installed {installed.version}, "
            "and the deployment does not allow a downgrade",
        )
    if manifest.module not in facts.modules:
        known = ", ".join(sorted(facts.modules)) or "none"
        yield Refuse(
            case.deployment,
            ModuleMissing.reason,
            f"no update module {manifest.module!r} on this device; installed are: {known}",
        )
    needed = artifact.length + limits.DISK_MARGIN_BYTES
    # What an attempt under way has fetched is already gone from the free space.
    under_way = case.attempt is not None and case.attempt.state not in FAILED_STATES
    if not under_way and artifact.sha256 not in facts.held and facts.free_bytes < needed:
        yield Wait(
            case.deployment,
            DiskFull.reason,
            f"{needed} bytes are needed for {artifact.filename} and {facts.free_bytes} are free",
            until=None,
        )


def _after_failure(deployment: VerifiedDeployment, attempt: Attempt, now: float) -> Iterator[Wait | Refuse]:
    """What an earlier failure means; nothing when it is time to try again."""
    failed = f"{attempt.state} after {attempt.attempts} attempts: {attempt.reason or 'no reason given'}"
    may_pass = attempt.reason in CIRCUMSTANCES or (
        attempt.reason in TRANSIENT and attempt.attempts < limits.ATTEMPTS_MAX
    )
    # A device that could not even roll back needs a person: nothing more is done to it by itself.
    if attempt.state == "inconsistent" or not may_pass:
        yield Refuse(deployment, ATTEMPTS_EXHAUSTED, failed)
    # An attempt in the future was made before the clock was set back, and says nothing about when to retry.
    elif attempt.at <= now < retry_at(attempt):
        yield Wait(deployment, RETRY_LATER, failed, until=retry_at(attempt))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Selector:
    """Parse a signed selector, any key accepted; remembered, as all are asked at every decision."""
    return parse_selector(text, known_keys=None)
