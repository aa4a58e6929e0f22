"""What the operator of a fleet does besides releasing: invitations, hubs, kits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from driftseed.core import limits
from driftseed.core.errors import Misuse, NotFound, WouldOverwrite
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.core.tickets import Ticket, encode_ticket
from driftseed.store.files import create_secret
from driftseed.trust.hubkit import export_hub_kit
from driftseed.trust.membership import create_invitation
from driftseed.trust.repository import FleetRepository

_METADATA_NAME = re.compile(r"metadata/(?:([0-9]+)\.)?([a-z][a-z0-9-]*)\.json")


@dataclass(frozen=True, slots=True)
class Invited:
    """A ticket, and what it is good for."""

    ticket: str
    id: str
    uses: int
    expires: float
    """Seconds since 1970."""
    labels: Mapping[str, str]
    hubs: tuple[NodeAddress, ...]


def invite(
    repository: FleetRepository,
    *,
    uses: int,
    lifetime_s: float,
    labels: Mapping[str, str],
    hubs: Sequence[NodeAddress],
    now: float,
) -> Invited:
    """Make a join ticket, and declare its labels so that selectors know them.

    Args:
        repository: the fleet.
        uses: devices that may join by it.
        lifetime_s: seconds from now.
        labels: given to every device that joins by it.
        hubs: where to join; none takes those that the fleet's metadata names.
        now: seconds since 1970.

    Raises:
        Misuse: no hub is known, or too many; ``uses`` or the labels are out of bounds.
    """
    where = tuple(hubs) or repository.hubs()
    if not where:
        raise Misuse(
            "a ticket without a hub would lead nowhere, and this fleet has none yet",
            hint="start one, then: driftseed fleet add-hub DIR ADDRESS (the address that 'hub run' prints), "
            "or name one for this ticket with --hub",
        )
    if len(where) > limits.TICKET_HUBS_MAX:
        raise Misuse(f"{len(where)} hubs, and a ticket names {limits.TICKET_HUBS_MAX}", hint="leave some out")
    invitation_id = uuid4().hex
    invitation = create_invitation(
        repository.enrolment_key(),
        fleet=repository.fleet_id,
        invitation_id=invitation_id,
        uses=uses,
        expires=now + lifetime_s,
        labels=labels,
    )
    text = encode_ticket(
        Ticket(
            fleet=repository.fleet_id,
            name=repository.name,
            root=repository.first_root,
            hubs=list(where),
            invitation=invitation,
            expires=now + lifetime_s,
        )
    )
    # Only now: a ticket that could not be made leaves no trace.
    if not repository.labels.issuperset(labels):
        repository.declare_labels(labels.keys())
    return Invited(text, invitation_id, uses, now + lifetime_s, dict(labels), where)


def add_hub(repository: FleetRepository, hub: NodeAddress) -> bool:
    """Sign that there is this hub; an address that it had before is replaced.

    Returns:
        Whether it is new.

    Raises:
        Misuse: the fleet has as many hubs as devices are told of.
    """
    known = False

    def with_it(before: Sequence[NodeAddress]) -> list[NodeAddress]:
        nonlocal known
        others = [one for one in before if one.device != hub.device]
        known = len(others) < len(before)
        return [*others, hub]

    repository.change_hubs(with_it)
    return not known


def remove_hub(repository: FleetRepository, device: DeviceId) -> None:
    """Sign that a hub is gone.

    Raises:
        NotFound: there is no such hub.
    """

    def without_it(before: Sequence[NodeAddress]) -> list[NodeAddress]:
        others = [one for one in before if one.device != device]
        if len(others) == len(before):
            raise NotFound(f"this fleet has no hub {device}", hint="driftseed fleet show DIR lists them")
        return others

    repository.change_hubs(without_it)


def write_hub_kit(repository: FleetRepository, path: Path, device: DeviceId | None = None) -> None:
    """Write the file that makes a machine a hub of this fleet, 0600; ``device`` is a hub that has its own key.

    Raises:
        WouldOverwrite: there is something of this name.
        NotFound: its directory does not exist.
    """
    check_free(path)
    create_secret(path, export_hub_kit(repository, device))


def write_ticket(path: Path, ticket: str) -> None:
    """Write a ticket to a file, 0600. Raises as ``check_free``, and DiskFull: nothing is left behind."""
    create_secret(path, ticket.encode("ascii") + b"\n")


def check_free(path: Path) -> None:
    """Make sure that a file can be made there, before something is signed that is to go into it.

    Raises:
        WouldOverwrite: there is something of this name.
        NotFound: its directory does not exist.
    """
    if path.exists() or path.is_symlink():
        raise WouldOverwrite(f"there is {path} already", hint="choose another name, or remove it first")
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory {path.parent}", hint="make it first")


def describe(repository: FleetRepository) -> dict[str, Any]:
    """What there is to know of a fleet without any of its keys, as one JSON object."""
    return {
        "fleet": repository.fleet_id,
        "name": repository.name,
        "labels": sorted(repository.labels),
        "hubs": [{"device": hub.device, "addrs": hub.addrs, "relay": hub.relay} for hub in repository.hubs()],
        "releases": len(repository.releases()),
        "deployments": [
            {
                "deployment": one.id,
                "sequence": one.sequence,
                "release": one.release,
                "version": one.version,
                "selector": one.selector,
                "created": one.created,
            }
            for one in repository.deployments()
        ],
        "metadata": _metadata(repository.metadata_files()),
    }


def days_left(expires: str, now: float) -> float:
    """Days until a metadata file expires; less than nothing when it has."""
    return (datetime.fromisoformat(expires) - datetime.fromtimestamp(now, UTC)).total_seconds() / 86400


def _metadata(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Version and expiry of the newest file of each role; the repository has verified them."""
    newest: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        match = _METADATA_NAME.fullmatch(name)
        if match is None:
            continue
        signed = json.loads(data)["signed"]
        known = newest.get(match[2])
        if known is None or known["version"] < signed["version"]:
            newest[match[2]] = {"version": signed["version"], "expires": signed["expires"]}
    return newest
