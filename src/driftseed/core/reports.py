"""What a device reports of itself, and how reports are kept on their way to a hub.

A report is one MessagePack map, signed by the device (``trust/report.py``) and opaque to whoever carries it.
The newest report of a device replaces its older ones, so reports may travel in any order, twice, and by any
neighbour. What a hub makes of them is ``core/fleetview.py``'s business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import ReportInvalid
from driftseed.core.ids import DeviceId
from driftseed.core.model import Hex64, Labels
from driftseed.core.verified import VerifiedReport

BODY_BYTES_MAX: Final = limits.REPORT_BYTES_MAX - limits.CERTIFICATE_BYTES_MAX - 512
"""Bytes of a report's body: the envelope adds the certificate, a key, a signature and their names."""
DETAIL_CHARS_MAX: Final = 512
"""Characters of an explanation in a report."""
REFUSED: Final = "refused"
"""State of a deployment that the device will not install; all other states are the lifecycle's."""

Text = Annotated[str, Meta(max_length=128)]
Token = Annotated[str, Meta(max_length=64)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class InstalledReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is installed under a release name."""

    version: Text
    manifest_sha256: Hex64


class UpdateReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One deployment, as it goes on the device. Times are seconds since 1970 on the device's clock."""

    deployment: Annotated[str, Meta(max_length=32)]
    release: Text
    version: Text
    state: Token
    """A lifecycle state, or ``REFUSED``."""
    attempts: Annotated[int, Meta(ge=0, le=2**31)] = 0
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the artifact that is on the device."""
    reason: Token = ""
    detail: Annotated[str, Meta(max_length=DETAIL_CHARS_MAX)] = ""
    started: Seconds = 0.0
    """When it was begun, or refused."""
    finished: Seconds | None = None
    bytes_from: Annotated[dict[Token, Count], Meta(max_length=16)] = {}
    """Where the content came from: ``hub/direct``, ``peers/lan`` and so on, in bytes."""
    seconds: Seconds = 0.0
    """How long it took, or has taken so far."""


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a device says of itself at one time."""

    device: Hex64
    sequence: Annotated[int, Meta(ge=1, le=2**53)]
    """Grows with every report of the device, also over restarts."""
    time: Seconds
    agent_version: Token = ""
    inventory: Annotated[dict[Token, Text], Meta(max_length=64)] = {}
    labels: Labels = {}
    installed: Annotated[dict[Text, InstalledReport], Meta(max_length=256)] = {}
    """By release name."""
    updates: Annotated[list[UpdateReport], Meta(max_length=limits.REPORT_UPDATES_MAX)] = []
    """Newest first."""
    refusals: Annotated[dict[Token, Count], Meta(max_length=64)] = {}
    """What was refused since the agent started, counted by reason."""
    clock_skew_s: Annotated[float, Meta(ge=-1e11, le=1e11)] | None = None
    """The device's clock minus a hub's; None when it has met no hub."""
    free_bytes: Count = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Report)


def encode_report(report: Report) -> bytes:
    """The body to sign. Use ``fit`` first: a body over ``BODY_BYTES_MAX`` is refused by everyone."""
    return _encoder.encode(report)


def decode_report(body: bytes, device: DeviceId) -> Report:
    """Read a report's body.

    Args:
        body: what the device signed.
        device: who signed it: it may report on nobody else.

    Raises:
        ReportInvalid: too large, malformed, or about another device.
    """
    if len(body) > BODY_BYTES_MAX:
        raise ReportInvalid(f"a report body of {len(body)} bytes where {BODY_BYTES_MAX} are allowed")
    try:
        report = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportInvalid(f"a report that does not decode: {error}") from None
    if report.device != device:
        raise ReportInvalid(f"{device[:16]} reports as {report.device[:16]}")
    return report


def fit(report: Report, bytes_max: int = BODY_BYTES_MAX) -> Report:
    """Shorten a report until it may be sent, losing what matters least first.

    In this order: explanations of old updates, old updates that have ended, other updates, counts of
    refusals, then installed releases and inventory from the end of the alphabet, and last the newest update.

    Args:
        report: of any size.
        bytes_max: most bytes of its encoding.

    Raises:
        ValueError: not even the device's id and labels fit.
    """
    for shorter in _shorter_and_shorter(_clipped(report)):
        if len(_encoder.encode(shorter)) <= bytes_max:
            return shorter
    raise ValueError(f"no report fits into {bytes_max} bytes")


def _clipped(report: Report) -> Report:
    """Keep each part within the bound that a reader has for it."""
    newest = sorted(report.updates, key=lambda each: (-each.started, each.deployment))
    # Updates under way are kept before those that have ended, however old they are.
    newest.sort(key=lambda each: each.finished is not None)
    kept = sorted(newest[: limits.REPORT_UPDATES_MAX], key=lambda each: (-each.started, each.deployment))
    return msgspec.structs.replace(
        report,
        updates=[msgspec.structs.replace(each, detail=each.detail[:DETAIL_CHARS_MAX]) for each in kept],
        inventory={key[:64]: value[:128] for key, value in sorted(report.inventory.items())[:64]},
        installed=dict(sorted(report.installed.items())[:256]),
        refusals=dict(sorted(report.refusals.items(), key=lambda each: (-each[1], each[0]))[:64]),
    )


def _shorter_and_shorter(report: Report) -> Iterator[Report]:
    yield report
    updates = list(report.updates)
    for index in range(len(updates) - 1, 0, -1):
        if updates[index].detail:
            updates[index] = msgspec.structs.replace(updates[index], detail="")
            report = msgspec.structs.replace(report, updates=list(updates))
            yield report
    for ended in (True, False):
        for index in range(len(updates) - 1, 0, -1):
            if (updates[index].finished is not None) is ended:
                del updates[index]
                report = msgspec.structs.replace(report, updates=list(updates))
                yield report
    if report.refusals:
        report = msgspec.structs.replace(report, refusals={})
        yield report
    for count in range(len(report.installed) - 1, -1, -1):
        report = msgspec.structs.replace(report, installed=dict(list(report.installed.items())[:count]))
        yield report
    for count in range(len(report.inventory) - 1, -1, -1):
        report = msgspec.structs.replace(report, inventory=dict(list(report.inventory.items())[:count]))
        yield report
    yield msgspec.structs.replace(report, updates=[])


@dataclass(slots=True)
class _Carried:
    report: VerifiedReport
    stored_by: set[DeviceId] = field(default_factory=set)
    """Hubs that have said so."""


class ReportBook:
    """The newest report of each device that we know of, until hubs have them.

    Args:
        own: ourselves; our own report is never dropped.
        carried_max: other devices whose reports are kept. When there are more, reports that a hub has go
            first, then those that came longest ago.
        hubs_max: hubs of which is remembered what they have.
    """

    def __init__(
        self,
        own: DeviceId,
        *,
        carried_max: int = limits.REPORTS_CARRIED_MAX,
        hubs_max: int = limits.TICKET_HUBS_MAX,
    ) -> None:
        self._own = own
        self._carried_max = carried_max
        self._hubs_max = hubs_max
        self._carried: OrderedDict[DeviceId, _Carried] = OrderedDict()

    def __len__(self) -> int:
        return len(self._carried)

    def __contains__(self, device: DeviceId) -> bool:
        return device in self._carried

    def newest(self, device: DeviceId) -> VerifiedReport | None:
        """The newest report of a device that is kept here."""
        carried = self._carried.get(device)
        return carried.report if carried is not None else None

    def add(self, report: VerifiedReport) -> bool:
        """Take a report in.

        A device that signs two reports of one sequence number is at fault (or was restored from a copy);
        everyone then keeps the same one of the two.

        Returns:
            Whether it is news: then hand it on.
        """
        known = self._carried.get(report.device)
        if known is not None and _age(report) <= _age(known.report):
            return False
        self._carried.pop(report.device, None)
        self._carried[report.device] = _Carried(report)
        self._evict()
        return report.device in self._carried

    def stored(self, device: DeviceId, sequence: int, hub: DeviceId) -> None:
        """Note a hub's word that it has this report of a device, or a newer one.

        Only what we hold counts as stored: a false word about the future cannot silence a device.
        """
        carried = self._carried.get(device)
        if carried is None or sequence < carried.report.sequence:
            return
        if len(carried.stored_by) < self._hubs_max:
            carried.stored_by.add(hub)

    def unstored(self, hub: DeviceId | None = None) -> tuple[VerifiedReport, ...]:
        """Reports to hand on, our own first, then the longest carried.

        Args:
            hub: to this hub: all that it has not said to have. None: to a neighbour: all that no hub has.
        """
        waiting = [
            carried.report
            for carried in self._carried.values()
            if (hub not in carried.stored_by if hub is not None else not carried.stored_by)
        ]
        return tuple(sorted(waiting, key=lambda each: each.device != self._own))

    def _evict(self) -> None:
        others = [(device, carried) for device, carried in self._carried.items() if device != self._own]
        excess = len(others) - self._carried_max
        if excess > 0:
            others.sort(key=lambda each: not each[1].stored_by)
            for device, _ in others[:excess]:
                del self._carried[device]


def _age(report: VerifiedReport) -> tuple[int, bytes]:
    return report.sequence, report.data
