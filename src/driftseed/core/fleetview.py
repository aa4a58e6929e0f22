"""What a hub knows of the fleet, folded from the newest report of each device: pure.

A hub can be asked at any time, and holds reports that are seconds or weeks old: each row says how old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct

from driftseed.core.errors import SelectorError
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.model import Deployment
from driftseed.core.policy import FAILED_STATES
from driftseed.core.reports import REFUSED, Report, UpdateReport
from driftseed.core.selectors import parse_selector

SILENT: Final = "silent"
"""Count of devices that a deployment is for and that have said nothing about it yet."""
INSTALLING: Final = "installing"
COUNTS: Final = (
    "succeeded",
    INSTALLING,
    "downloading",
    "waiting",
    "failed",
    "rolled-back",
    REFUSED,
    SILENT,
)
"""What the devices of a deployment are counted as; every one is in every row."""

_COUNTED_AS: Final[Mapping[str, str]] = {
    State.WAITING: "waiting",
    State.DOWNLOADING: "downloading",
    State.VERIFYING: "downloading",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.INCONSISTENT: "failed",
    State.ROLLED_BACK: "rolled-back",
    REFUSED: REFUSED,
}
_NOT_UNDER_WAY: Final = frozenset({State.SUCCEEDED, State.CANCELLED, REFUSED}) | FAILED_STATES


class Member(Struct, frozen=True, kw_only=True):
    """A device that a hub knows to belong to the fleet."""

    device: DeviceId
    labels: dict[str, str] = {}
    """From its certificate: these count, whatever its report says."""
    heard_at: float | None = None
    """When anything was last heard of it, seconds since 1970 on the hub's clock."""


class DeviceRow(Struct, frozen=True, kw_only=True):
    """A device, as it was when it last reported."""

    device: str
    labels: dict[str, str]
    inventory: dict[str, str]
    agent_version: str
    installed: dict[str, str]
    """Version by release name."""
    doing: UpdateReport | None
    """The newest update that is under way."""
    failed: UpdateReport | None
    """The newest update that failed or was refused, if nothing newer of that release did better."""
    updates: list[UpdateReport]
    refusals: dict[str, int]
    clock_skew_s: float | None
    free_bytes: int
    sequence: int
    """Of the report; 0 when there is none."""
    heard_s: float | None
    """Seconds since anything was heard of it; None: never."""


class DeviceFailure(Struct, frozen=True, kw_only=True):
    """Why a deployment is not on a device."""

    device: str
    state: str
    reason: str
    detail: str


class DeploymentRow(Struct, frozen=True, kw_only=True):
    """A deployment, and how far the devices that it is for have got."""

    id: str
    sequence: int
    release: str
    version: str
    selector: str
    created: str
    addressed: int
    """Devices that it is for: the sum of the counts."""
    counts: dict[str, int]
    """By ``COUNTS``."""
    reasons: dict[str, int]
    """Devices that failed, refused or wait, by reason."""
    failed: list[DeviceFailure]
    """Devices that failed or refused."""


def fold_devices(
    members: Iterable[Member], reports: Mapping[DeviceId, Report], now: float
) -> tuple[DeviceRow, ...]:
    """One row for each member and each device that has reported, by device id.

    Args:
        members: whom the hub has met or let join.
        reports: the newest of each device, verified.
        now: seconds since 1970 on the hub's clock.
    """
    known = _known(members, reports)
    return tuple(_device_row(known[device], reports.get(device), now) for device in sorted(known))


def fold_deployments(
    deployments: Iterable[Deployment],
    members: Iterable[Member],
    reports: Mapping[DeviceId, Report],
) -> tuple[DeploymentRow, ...]:
    """One row for each deployment, by sequence.

    A device counts for the newest deployment of a release name that addresses it, and for older ones only
    when it reports something about them.

    Args:
        deployments: those in force.
        members: whom the hub has met or let join.
        reports: the newest of each device, verified.
    """
    ordered = sorted(deployments, key=lambda each: (each.sequence, each.id))
    known = _known(members, reports)
    addressed: dict[str, list[DeviceId]] = {
        each.id: _addressed(each, known.values(), reports) for each in ordered
    }
    newest: dict[tuple[str, DeviceId], str] = {}
    for each in ordered:
        newest.update({(each.release, device): each.id for device in addressed[each.id]})
    rows: list[DeploymentRow] = []
    for each in ordered:
        said = {device: _update_of(each, reports[device]) for device in reports}
        current = {device for device in addressed[each.id] if newest[each.release, device] == each.id}
        devices = sorted(current | {device for device, update in said.items() if update is not None})
        rows.append(
            _deployment_row(each, {device: (said.get(device), reports.get(device)) for device in devices})
        )
    return tuple(rows)


def _known(members: Iterable[Member], reports: Collection[DeviceId]) -> dict[DeviceId, Member]:
    known = {device: Member(device=device) for device in reports}
    known.update({member.device: member for member in members})
    return known


def _labels(member: Member, report: Report | None) -> dict[str, str]:
    return dict(member.labels or (report.labels if report is not None else {}))


def _addressed(
    deployment: Deployment, members: Iterable[Member], reports: Mapping[DeviceId, Report]
) -> list[DeviceId]:
    try:
        selector = parse_selector(deployment.selector, known_keys=None)
    except SelectorError:
        return []  # the devices refuse it too, each with the reason
    found: list[DeviceId] = []
    for member in members:
        report = reports.get(member.device)
        inventory = report.inventory if report is not None else {}
        values = {**inventory, **_labels(member, report), "device.id": member.device}
        if selector.matches(values):
            found.append(member.device)
    return found


def _update_of(deployment: Deployment, report: Report) -> UpdateReport | None:
    for update in report.updates:
        if update.deployment == deployment.id and update.state != State.CANCELLED:
            return update
    return None


def _counted_as(deployment: Deployment, update: UpdateReport | None, report: Report | None) -> str:
    if update is not None:
        # A newer agent may know states that this hub does not: then it is at least under way.
        return _COUNTED_AS.get(update.state, INSTALLING)
    installed = report.installed.get(deployment.release) if report is not None else None
    if installed is not None and installed.manifest_sha256 == deployment.manifest_sha256:
        return "succeeded"
    return SILENT


def _deployment_row(
    deployment: Deployment, devices: Mapping[DeviceId, tuple[UpdateReport | None, Report | None]]
) -> DeploymentRow:
    counts = Counter(dict.fromkeys(COUNTS, 0))
    reasons: Counter[str] = Counter()
    failed: list[DeviceFailure] = []
    for device, (update, report) in devices.items():
        counts[_counted_as(deployment, update, report)] += 1
        if update is None or update.state == State.SUCCEEDED:
            continue
        if update.reason:
            reasons[update.reason] += 1
        if update.state in FAILED_STATES or update.state == REFUSED:
            failed.append(
                DeviceFailure(device=device, state=update.state, reason=update.reason, detail=update.detail)
            )
    return DeploymentRow(
        id=deployment.id,
        sequence=deployment.sequence,
        release=deployment.release,
        version=deployment.version,
        selector=deployment.selector,
        created=deployment.created,
        addressed=len(devices),
        counts=dict(counts),
        reasons=dict(reasons),
        failed=failed,
    )


def _device_row(member: Member, report: Report | None, now: float) -> DeviceRow:
    updates = list(report.updates) if report is not None else []
    newest = sorted(updates, key=lambda each: each.started, reverse=True)
    latest_of_release: dict[str, UpdateReport] = {}
    for each in newest:
        if each.state != State.CANCELLED:
            latest_of_release.setdefault(each.release, each)
    troubled = (
        each for each in latest_of_release.values() if each.state in FAILED_STATES or each.state == REFUSED
    )
    return DeviceRow(
        device=member.device,
        labels=_labels(member, report),
        inventory=dict(report.inventory) if report is not None else {},
        agent_version=report.agent_version if report is not None else "",
        installed={name: each.version for name, each in report.installed.items()} if report else {},
        doing=next((each for each in newest if each.state not in _NOT_UNDER_WAY), None),
        failed=next(troubled, None),
        updates=updates,
        refusals=dict(report.refusals) if report is not None else {},
        clock_skew_s=report.clock_skew_s if report is not None else None,
        free_bytes=report.free_bytes if report is not None else 0,
        sequence=report.sequence if report is not None else 0,
        heard_s=None if member.heard_at is None else max(0.0, now - member.heard_at),
    )
