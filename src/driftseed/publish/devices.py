"""What an operator says of single devices: signed by the ``fleet`` role, travelling as everything else does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from driftseed.core.errors import Misuse
from driftseed.core.ids import DeviceId
from driftseed.core.model import Approval, Devices, Revocation
from driftseed.trust.admission import check_labels
from driftseed.trust.repository import FleetRepository
from driftseed.trust.times import describe_time

_TICKET_ID: Final = re.compile(r"[0-9a-f]{32}")


def revoke(
    repository: FleetRepository, devices: Sequence[DeviceId], *, now: float, since: float, reason: str
) -> None:
    """Expel devices.

    Args:
        repository: the fleet.
        devices: they are approved no more, either.
        now: seconds since 1970.
        since: of a hub: what it countersigned from then on does not count.
        reason: told to whoever is refused.

    Raises:
        Misuse: more is said of devices than fits into a document.
    """
    revocation = _revocation(now, since, reason)

    def expelled(before: Devices) -> Devices:
        approved = {device: one for device, one in before.approved.items() if device not in devices}
        revoked = {**before.revoked, **{str(device): revocation for device in devices}}
        return msgspec.structs.replace(before, revoked=revoked, approved=approved)

    repository.change_devices(expelled)


def withdraw_tickets(repository: FleetRepository, tickets: Sequence[str], *, now: float, reason: str) -> None:
    """Let nobody join by these tickets any more, and expel those that did. Raises as ``revoke``."""
    for ticket in tickets:
        if not _TICKET_ID.fullmatch(ticket):
            raise Misuse(f"{ticket!r} is no ticket's id", hint="driftseed fleet invite --json shows it as id")
    withdrawn = dict.fromkeys(tickets, _revocation(now, 0.0, reason))
    repository.change_devices(
        lambda before: msgspec.structs.replace(before, tickets={**before.tickets, **withdrawn})
    )


def approve(
    repository: FleetRepository, devices: Sequence[DeviceId], *, labels: Mapping[str, str], expires: float
) -> None:
    """Sign that devices are members whatever they show.

    Args:
        repository: the fleet.
        devices: they are expelled no more.
        labels: of all of them.
        expires: seconds since 1970.

    Raises:
        Misuse: the labels are out of bounds, or more is said of devices than fits into a document.
    """
    approval = Approval(labels=check_labels(labels), expires=expires)

    def let_in(before: Devices) -> Devices:
        approved = {**before.approved, **{str(device): approval for device in devices}}
        revoked = {device: one for device, one in before.revoked.items() if device not in devices}
        return msgspec.structs.replace(before, approved=approved, revoked=revoked)

    repository.change_devices(let_in)
    repository.declare_labels(labels.keys())


def relabel(repository: FleetRepository, device: DeviceId, labels: Mapping[str, str] | None) -> None:
    """Give a device other labels; None for those that it joined with. Raises as ``approve``."""
    given = {} if labels is None else {str(device): check_labels(labels)}

    def relabelled(before: Devices) -> Devices:
        others = {key: value for key, value in before.labels.items() if key != device}
        return msgspec.structs.replace(before, labels={**others, **given})

    repository.change_devices(relabelled)
    repository.declare_labels((labels or {}).keys())


def describe(repository: FleetRepository) -> list[dict[str, Any]]:
    """Everything that is said, one row a device and state."""
    found = repository.devices()
    rows = [
        _row("device", device, "revoked", one.at, {}, one.reason) for device, one in found.revoked.items()
    ]
    rows += [
        _row("device", device, "approved", None, one.labels, f"until {describe_time(one.expires)}")
        for device, one in found.approved.items()
    ]
    rows += [
        _row("device", device, "relabelled", None, labels, "") for device, labels in found.labels.items()
    ]
    rows += [
        _row("ticket", ticket, "revoked", one.at, {}, one.reason) for ticket, one in found.tickets.items()
    ]
    return rows


def _revocation(now: float, since: float, reason: str) -> Revocation:
    if len(reason) > 256:
        raise Misuse(f"a reason of {len(reason)} characters", hint="at most 256")
    return Revocation(at=now, since=since, reason=reason)


def _row(
    kind: str, name: str, state: str, at: float | None, labels: Mapping[str, str], reason: str
) -> dict[str, Any]:
    return {
        "kind": kind,
        "id": name,
        "state": state,
        "at": None if at is None else describe_time(at),
        "labels": dict(labels),
        "reason": reason,
    }
