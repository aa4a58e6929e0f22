"""Rows of the hub's API; the field names are a contract (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from driftseed.core.fleetview import DeploymentRow, DeviceFailure, DeviceRow
from driftseed.core.reports import REFUSED, UpdateReport

SILENT_AFTER_S: Final = 180.0
"""Seconds without a word after which a device counts as stuck: six missed comparisons of versions."""
NO_PROGRESS_AFTER_S: Final = 900.0
"""Seconds at the same state and share of the content after which a device counts as stuck."""


class UpdateView(Struct, frozen=True, kw_only=True):
    """One deployment on one device, as the device reports it."""

    deployment: str
    release: str
    version: str
    state: str
    progress: float
    """0 to 1."""
    attempts: int
    reason: str
    detail: str
    started: float
    """Seconds since 1970, the device's clock."""
    finished: float | None
    seconds: float
    bytes_from: dict[str, int]


class Stuck(Struct, frozen=True, kw_only=True):
    """Why a device needs a person."""

    why: str
    """``failed``, ``refused``, ``no-progress`` or ``silent``."""
    reason: str
    """The token of the failed, refused or waiting update; for the others the same as ``why``."""
    detail: str
    since_s: float | None
    """Seconds for which it has been so, as far as the hub can tell."""


class DeviceView(Struct, frozen=True, kw_only=True):
    """One device."""

    device: str
    labels: dict[str, str]
    inventory: dict[str, str]
    agent_version: str
    installed: dict[str, str]
    doing: UpdateView | None
    failed: UpdateView | None
    stuck: Stuck | None
    heard_s: float | None
    """Seconds since the last report or link; none: never."""
    connected: bool
    path: str | None
    """``lan``, ``direct`` or ``relayed`` while it is connected."""
    updates: list[UpdateView]
    refusals: dict[str, int]
    clock_skew_s: float | None
    free_bytes: int
    sequence: int


class DeploymentView(Struct, frozen=True, kw_only=True):
    """One deployment over all devices."""

    deployment: str
    sequence: int
    release: str
    version: str
    selector: str
    created: str
    addressed: int
    counts: dict[str, int]
    reasons: dict[str, int]
    failed: list[DeviceFailure]


def device_view(
    row: DeviceRow, *, now: float, moved_at: float | None, connected: Mapping[str, str]
) -> DeviceView:
    """What the API says of a device.

    Args:
        row: folded from its newest report.
        now: seconds since 1970.
        moved_at: when a report first said what it is at now, seconds since 1970.
        connected: kind of path by device id, of those that have a link to this hub.
    """
    path = connected.get(row.device)
    heard_s = 0.0 if path is not None else row.heard_s
    fields = {name: getattr(row, name) for name in _TAKEN_OVER}
    return DeviceView(
        **fields,
        doing=_update_view(row.doing),
        failed=_update_view(row.failed),
        updates=[_view(each) for each in row.updates],
        stuck=_stuck(row, now, moved_at, heard_s),
        heard_s=heard_s,
        connected=path is not None,
        path=path,
    )


def deployment_view(row: DeploymentRow) -> DeploymentView:
    """What the API says of a deployment."""
    fields = {name: getattr(row, name) for name in DeploymentView.__struct_fields__ if name != "deployment"}
    return DeploymentView(deployment=row.id, **fields)


_TAKEN_OVER: Final = (
    "device",
    "labels",
    "inventory",
    "agent_version",
    "installed",
    "refusals",
    "clock_skew_s",
    "free_bytes",
    "sequence",
)


def _view(update: UpdateReport) -> UpdateView:
    return UpdateView(**msgspec.structs.asdict(update))


def _update_view(update: UpdateReport | None) -> UpdateView | None:
    return _view(update) if update is not None else None


def _stuck(row: DeviceRow, now: float, moved_at: float | None, heard_s: float | None) -> Stuck | None:
    """The most telling of what holds a device up: a failure says more than silence after it."""
    if row.failed is not None:
        why = REFUSED if row.failed.state == REFUSED else "failed"
        since = None if row.failed.finished is None else max(0.0, now - row.failed.finished)
        return Stuck(
            why=why, reason=row.failed.reason or row.failed.state, detail=row.failed.detail, since_s=since
        )
    if heard_s is None or heard_s > SILENT_AFTER_S:
        return Stuck(why="silent", reason="silent", detail="", since_s=heard_s)
    still_s = now - moved_at if moved_at is not None else 0.0
    if row.doing is not None and still_s > NO_PROGRESS_AFTER_S:
        return Stuck(
            why="no-progress",
            reason=row.doing.reason or "no-progress",
            detail=row.doing.detail,
            since_s=still_s,
        )
    return None
