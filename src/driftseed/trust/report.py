"""Reports that a device signs with its own key and anybody may carry.

The envelope's payload holds the device's membership certificate, so that whoever carries or stores a report
sees by itself that a member made it: made-up devices cannot fill a hub's or a neighbour's store. The body is
opaque here; ``sequence`` is outside of it because the newest report of a device replaces its older ones.
"""

from __future__ import annotations

from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import Misuse, ReportInvalid
from driftseed.core.ids import DeviceId
from driftseed.core.verified import VerifiedReport
from driftseed.trust.envelope import Envelope, EnvelopeError, decode_envelope, decode_payload, seal
from driftseed.trust.membership import Membership

REPORT_CONTEXT: Final = b"driftseed report v1"


class _Signed(Struct, frozen=True, kw_only=True):
    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    sequence: Annotated[int, Meta(ge=0)]
    body: bytes


def sign_report(secret: bytes, *, certificate: bytes, sequence: int, body: bytes) -> bytes:
    """Sign a report.

    Args:
        secret: the device's Ed25519 private key, 32 bytes.
        certificate: the device's membership certificate; it names the fleet.
        sequence: grows with every report of the device.
        body: the report itself.

    Raises:
        Misuse: the report would be larger than REPORT_BYTES_MAX.
    """
    key = Ed25519PrivateKey.from_private_bytes(secret)
    envelope = seal(key, REPORT_CONTEXT, _Signed(certificate=certificate, sequence=sequence, body=body))
    if len(envelope) > limits.REPORT_BYTES_MAX:
        raise Misuse(f"a report of {len(envelope)} bytes where {limits.REPORT_BYTES_MAX} are allowed")
    return envelope


def verify_report(envelope: bytes, membership: Membership) -> VerifiedReport:
    """Verify that a report was made by a member and signed by its own key.

    Raises:
        ReportInvalid: too large, malformed, or not signed by the key it names.
        NotAMember: that key is no member's (MembershipExpired: not any more).
    """
    try:
        opened = decode_envelope(envelope, limits.REPORT_BYTES_MAX)
        opened.verify(REPORT_CONTEXT)
        signed = decode_payload(opened, _Signed)
    except EnvelopeError as error:
        raise ReportInvalid(f"a report that proves nothing: {error}") from None
    device = DeviceId(opened.signer)
    membership.check(signed.certificate, device)
    return VerifiedReport(device=device, sequence=signed.sequence, data=envelope)


def report_body(report: VerifiedReport) -> bytes:
    """What the device reported."""
    opened: Envelope = decode_envelope(report.data, limits.REPORT_BYTES_MAX)
    return decode_payload(opened, _Signed).body
