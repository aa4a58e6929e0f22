"""The documents that are signed: what a release is, what a deployment is, who enrols, where hubs are.

They travel as JSON files that are TUF targets (docs/protocol.md, "Documents"). Unknown members are
ignored, so that newer publishers can add some; ``format`` grows when an old reader must refuse.
Decoding only checks shape; who signed it is ``trust/``'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits

FORMAT = 1

Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}\Z")]
Selector = Annotated[str, Meta(max_length=1024)]
Seconds = Annotated[float, Meta(gt=0, le=86400.0)]
Labels = Annotated[
    dict[
        Annotated[str, Meta(max_length=limits.LABEL_CHARS_MAX)],
        Annotated[str, Meta(max_length=limits.LABEL_CHARS_MAX)],
    ],
    Meta(max_length=limits.LABELS_MAX),
]
SocketAddress = Annotated[str, Meta(max_length=64)]
RelayUrl = Annotated[str, Meta(max_length=256, pattern=r"\Ahttps?://")]


class Artifact(Struct, frozen=True, kw_only=True):
    """One signed file of a release, and the devices it is for."""

    filename: Name
    """The name it had when it was released; what an update module sees."""
    length: Annotated[int, Meta(ge=0, le=limits.ARTIFACT_BYTES_MAX)]
    sha256: Hex64
    torrent_sha256: Hex64
    """SHA-256 of the torrent file, itself a TUF target beside the artifact."""
    selector: Selector = ""
    """Devices it is for; empty means all."""


class HealthCheck(Struct, frozen=True, kw_only=True):
    """A command that says whether a device is well after an install: exit status 0 means yes."""

    command: Annotated[list[str], Meta(min_length=1, max_length=64)]
    timeout_s: Seconds = limits.HEALTH_TIMEOUT_S


class ReleaseManifest(Struct, frozen=True, kw_only=True):
    """Artifacts under a name and version: target ``releases/NAME/VERSION/release.json``."""

    name: Name
    version: Name
    module: Name
    """Update module (payload type) that installs it."""
    artifacts: Annotated[list[Artifact], Meta(min_length=1, max_length=limits.VARIANTS_MAX)]
    created: str
    """RFC 3339, UTC."""
    health: HealthCheck | None = None
    module_timeout_s: Seconds = limits.MODULE_TIMEOUT_S
    meta: dict[str, Any] = {}
    """Handed to the update module as ``header/meta-data``."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


class Deployment(Struct, frozen=True, kw_only=True):
    """Which devices shall have which release: target ``deployments/ID.json``."""

    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    """A random UUID (RFC 4122, version 4), hexadecimal without dashes."""
    sequence: Annotated[int, Meta(ge=1)]
    """Grows with every deployment of the fleet: of two for the same release name, the higher one counts."""
    release: Name
    version: Name
    manifest_sha256: Hex64
    """Both roles must agree: this names what ``releases`` must have signed."""
    selector: Selector = ""
    created: str = ""
    allow_downgrade: bool = False
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


class EnrolmentKeys(Struct, frozen=True, kw_only=True):
    """Keys whose signature makes a device a member: target ``fleet/enrolment.json``."""

    keys: Annotated[list[Hex64], Meta(min_length=1, max_length=16)]
    """Ed25519 public keys."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


Role = Literal["agent", "hub", "publisher"]
"""What a member may be taken for."""
DeviceKey = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
TicketId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Moment = Annotated[float, Meta(ge=0.0, le=253402300799.0)]


class Revocation(Struct, frozen=True, kw_only=True):
    """A device, or a ticket, that is expelled."""

    at: Moment
    """Seconds since 1970: when it was signed."""
    since: Moment = 0.0
    """Of a hub: what it has countersigned from then on does not count; 0 for nothing of it counting."""
    reason: Annotated[str, Meta(max_length=256)] = ""


class Approval(Struct, frozen=True, kw_only=True):
    """A device that is a member whatever it shows."""

    role: Role = "agent"
    labels: Labels = {}
    expires: Moment
    """Seconds since 1970."""


class Devices(Struct, frozen=True, kw_only=True):
    """What operators say of single devices: target ``fleet/devices.json``; none of it is said when it is absent."""

    revoked: dict[DeviceKey, Revocation] = {}
    """Devices that are expelled: every node drops them and refuses them."""
    approved: dict[DeviceKey, Approval] = {}
    labels: dict[DeviceKey, Labels] = {}
    """Labels that replace all of those that a device joined with."""
    tickets: dict[TicketId, Revocation] = {}
    """Tickets by which nobody joins any more, and whose members are expelled."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


class NodeAddress(Struct, frozen=True, kw_only=True):
    """How to dial a device: its key, the addresses it may be at, the relay that it listens on."""

    device: Hex64
    addrs: Annotated[list[SocketAddress], Meta(max_length=limits.ADDRESSES_PER_DEVICE_MAX)] = []
    """``IP:PORT`` or ``[IPv6]:PORT``, UDP."""
    relay: RelayUrl | None = None


class Hubs(Struct, frozen=True, kw_only=True):
    """Where the fleet's hubs are: target ``fleet/hubs.json``."""

    hubs: Annotated[list[NodeAddress], Meta(max_length=limits.TICKET_HUBS_MAX)] = []
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


def manifest_target(name: str, version: str) -> str:
    """TUF target path of a release's manifest."""
    return f"releases/{name}/{version}/release.json"


def artifact_target(name: str, version: str, artifact: Artifact) -> str:
    """TUF target path of an artifact: unique, as two variants may have the same file name."""
    return f"releases/{name}/{version}/{artifact.sha256}.{artifact.filename}"


def torrent_target(name: str, version: str, artifact: Artifact) -> str:
    """TUF target path of an artifact's torrent file."""
    return f"releases/{name}/{version}/{artifact.sha256}.torrent"


def deployment_target(deployment_id: str) -> str:
    """TUF target path of a deployment."""
    return f"deployments/{deployment_id}.json"


ENROLMENT_TARGET = "fleet/enrolment.json"
HUBS_TARGET = "fleet/hubs.json"
DEVICES_TARGET = "fleet/devices.json"

DocumentT = TypeVar("DocumentT", bound=Struct)


def encode_document(document: Struct) -> bytes:
    """JSON with sorted keys and a final newline, so that the same document is the same bytes."""
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def decode_document(data: bytes, kind: type[DocumentT]) -> DocumentT:
    """Decode a document that was verified, checking its shape.

    Raises:
        ValueError: not JSON, or not of this shape (``msgspec.DecodeError`` is one).
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None
