"""Every error that a person or a report can meet, grouped by whose fault it is.

An error says what happened, to what, and what to do. ``exit_code`` is what a command returns and
``reason`` the token that reports, counters and ``--json`` carry; both are a contract (docs/errors.md
lists them) and are never reused for something else.

====== ===================== ==========================================
codes  group                 whose fault, and what a caller does
====== ===================== ==========================================
2      usage                 the command line (Typer's own code)
10-29  Misuse                the person: mend the input, try again
30-49  TrustError            the repository or a forger: refuse, report
50-69  TransportError        the network or a peer: try another, later
70-89  DeviceError           this machine: disk, port, clock, module
====== ===================== ==========================================
"""

from __future__ import annotations

from typing import ClassVar


class DriftseedError(Exception):
    """Base of all errors that are shown to people.

    Args:
        message: what happened, to what.
        hint: what to do about it; empty when there is nothing to do.
    """

    exit_code: ClassVar[int] = 1
    reason: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Misuse(DriftseedError):
    """The person's input cannot be used."""

    exit_code = 10
    reason = "misuse"


class SelectorError(Misuse):
    """A selector does not parse or names an unknown key.

    Args:
        message: what is wrong.
        text: the whole selector.
        position: index of the first wrong character in ``text``.
        hint: what to write instead.
    """

    exit_code = 11
    reason = "selector-invalid"

    def __init__(self, message: str, *, text: str, position: int, hint: str = "") -> None:
        super().__init__(f"{message}\n  {text}\n  {' ' * position}^", hint=hint)
        self.text = text
        self.position = position


class UnknownSelectorKey(SelectorError):
    """A selector names a key that no inventory has and no label was given for."""

    exit_code = 12
    reason = "selector-unknown-key"


class TicketDamaged(Misuse):
    """A join ticket does not decode: a character is missing or changed."""

    exit_code = 13
    reason = "ticket-damaged"


class TicketExpired(Misuse):
    """A join ticket was good once."""

    exit_code = 14
    reason = "ticket-expired"


class WrongPassphrase(Misuse):
    """A key file does not open with this passphrase."""

    exit_code = 15
    reason = "passphrase-wrong"


class ArtifactUnreadable(Misuse):
    """An artifact given to ``release create`` is missing, unreadable, truncated or changing."""

    exit_code = 16
    reason = "artifact-unreadable"


class WouldOverwrite(Misuse):
    """The command would replace something that cannot be had back."""

    exit_code = 17
    reason = "would-overwrite"


class WrongFleet(Misuse):
    """A data directory, kit or ticket belongs to another fleet."""

    exit_code = 18
    reason = "wrong-fleet"


class NotFound(Misuse):
    """The named release, deployment, directory or update is not there."""

    exit_code = 19
    reason = "not-found"


class TicketRefused(Misuse):
    """The hub refuses the ticket: used up, not of this fleet, or forged."""

    exit_code = 20
    reason = "ticket-refused"


class UnsafePermissions(Misuse):
    """A secret file or socket can be read by others."""

    exit_code = 21
    reason = "permissions-unsafe"


class Conflict(Misuse):
    """The request contradicts what is there now, such as removing an update that is installed."""

    exit_code = 22
    reason = "conflict"


class RequestRefused(Misuse):
    """A request to the local or the hub's API that HTTP itself, or a limit, does not allow.

    Args:
        message: what is wrong with it.
        status: the HTTP status that says so (400 to 499, or 503 and 505).
        hint: what to send instead.
    """

    exit_code = 23
    reason = "request-refused"

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ConfigInvalid(Misuse):
    """A configuration has an unknown key, or a value of the wrong type or range."""

    exit_code = 24
    reason = "config-invalid"


class PassphraseNeeded(Misuse):
    """A key is encrypted, and there is neither a terminal to ask at nor ``DRIFTSEED_PASSPHRASE``."""

    exit_code = 25
    reason = "passphrase-needed"


class TrustError(DriftseedError):
    """Signed metadata, or content, does not prove what it must prove."""

    exit_code = 30
    reason = "trust"


class MetadataInvalid(TrustError):
    """Metadata is malformed or not signed by the role's keys up to its threshold."""

    exit_code = 31
    reason = "metadata-unsigned"


class MetadataReplayed(TrustError):
    """Metadata is older than what this device has already trusted (TUF rollback attack)."""

    exit_code = 32
    reason = "metadata-replayed"


class MetadataExpired(TrustError):
    """Metadata is past its expiry (TUF freeze attack), or the clock is wrong."""

    exit_code = 33
    reason = "metadata-expired"


class ContentMismatch(TrustError):
    """A file's length or SHA-256 is not the signed one."""

    exit_code = 34
    reason = "content-mismatch"


class RolesDisagree(TrustError):
    """A deployment names a release that the ``releases`` role did not sign with that hash."""

    exit_code = 35
    reason = "roles-disagree"


class NotAMember(TrustError):
    """The other side of a connection cannot prove that it belongs to this fleet."""

    exit_code = 36
    reason = "not-a-member"


class MembershipExpired(NotAMember):
    """A membership certificate is past its expiry."""

    exit_code = 37
    reason = "membership-expired"


class ReportInvalid(TrustError):
    """A report is malformed, or not signed by the key of the device that it speaks for."""

    exit_code = 38
    reason = "report-invalid"


class MemberRevoked(NotAMember):
    """A device, or the hub or ticket that let it in, was expelled by signed metadata."""

    exit_code = 39
    reason = "member-revoked"


class TransportError(DriftseedError):
    """The network, or the peer at the other end of it, did not do its part."""

    exit_code = 50
    reason = "transport"


class PeerUnreachable(TransportError):
    """No connection could be made in the time given."""

    exit_code = 51
    reason = "peer-unreachable"


class PeerMisbehaved(TransportError):
    """A peer sent what the protocol forbids; the link is closed and the peer counted.

    Args:
        message: what it sent.
        kind: the reason under which it is counted, such as ``frame-too-large``.
    """

    exit_code = 52
    reason = "peer-misbehaved"

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class PeerStalled(TransportError):
    """A peer stopped sending in the middle of something."""

    exit_code = 53
    reason = "peer-stalled"


class LinkClosed(TransportError):
    """The connection under a stream ended."""

    exit_code = 54
    reason = "link-closed"


class FileMissing(TransportError):
    """The peer that was asked does not have the file."""

    exit_code = 55
    reason = "file-missing"


class AgentUnreachable(TransportError):
    """No agent or hub answers on its local socket or URL."""

    exit_code = 56
    reason = "agent-unreachable"


class DeviceError(DriftseedError):
    """This machine cannot do it now."""

    exit_code = 70
    reason = "device"


class PortTaken(DeviceError):
    """Another process listens on the address."""

    exit_code = 71
    reason = "port-taken"


class DiskFull(DeviceError):
    """Not enough space; retried when there is space again."""

    exit_code = 72
    reason = "disk-full"


class ClockWrong(DeviceError):
    """The clock is so far off that nothing signed can be judged by it."""

    exit_code = 73
    reason = "clock-wrong"


class ModuleMissing(DeviceError):
    """No update module of this name is installed on the device."""

    exit_code = 74
    reason = "module-missing"


class ModuleFailed(DeviceError):
    """An update module returned an error."""

    exit_code = 75
    reason = "module-failed"


class ModuleTimeout(DeviceError):
    """An update module did not end in its time and was killed with its children."""

    exit_code = 76
    reason = "module-timeout"


class HealthCheckFailed(DeviceError):
    """The release's own health check says that the device is not well."""

    exit_code = 77
    reason = "health-check-failed"


class EngineFailed(DeviceError):
    """The BitTorrent engine's process died or would not start."""

    exit_code = 78
    reason = "engine-failed"


class AlreadyRunning(DeviceError):
    """Another process uses this data directory."""

    exit_code = 79
    reason = "already-running"


class StoreDamaged(DeviceError):
    """A file or database in the data directory cannot be read."""

    exit_code = 80
    reason = "store-damaged"


class NoVariant(DeviceError):
    """No artifact of a release is for this device."""

    exit_code = 81
    reason = "no-variant"


class AmbiguousVariant(DeviceError):
    """Several artifacts of a release are for this device, and none is the most specific."""

    exit_code = 82
    reason = "ambiguous-variant"


class Interrupted(DeviceError):
    """The power went, or the agent was stopped, while something was being installed; it was undone."""

    exit_code = 83
    reason = "interrupted"


class RebootFailed(DeviceError):
    """The device was to reboot and did not."""

    exit_code = 84
    reason = "reboot-failed"


class KeyUnusable(DeviceError):
    """A key device, or a cloud key service, does not sign."""

    exit_code = 85
    reason = "key-unusable"


class LabUnavailable(DeviceError):
    """This machine does not let the laboratory make its networks."""

    exit_code = 88
    reason = "lab-unavailable"


class LabFailed(DeviceError):
    """Something in the laboratory is not what its description says, or did not happen in time."""

    exit_code = 89
    reason = "lab-failed"
