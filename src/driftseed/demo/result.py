"""What the demo found: one object for programs, a table for people. All that must hold is judged here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct, field
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from driftseed.demo.machines import Update

_SOURCES: Final = ("hub", "publisher", "peer")
_PATHS: Final = ("lan", "direct", "relayed")


class DeviceResult(Struct, kw_only=True):
    """One device at the end."""

    name: str
    device: str
    board: str
    arch: str
    version: str = ""
    """Installed at the end."""
    bytes_from: dict[str, int] = field(default_factory=dict)
    """Bytes of version 2 by ``hub/lan``, ``peer/lan`` and so on, protocol included."""
    sources: dict[str, int] = field(default_factory=dict)
    """The same by ``hub``, ``publisher`` and ``peer``."""
    paths: dict[str, int] = field(default_factory=dict)
    """The same by ``lan``, ``direct`` and ``relayed``."""
    seconds: float = 0.0
    """From hearing of version 2 to having it installed."""
    was_off: bool = False
    """Switched off when version 2 was published, back when the hub was dead."""
    files_compared: int = 0
    """Of the last comparison, at the end."""
    rollback: str = ""
    """Why version 3 was undone."""
    refused: list[str] = field(default_factory=list)
    """Reasons for which it refused what the attacker offered."""

    def took(self, update: Update) -> None:
        """Note how version 2 came."""
        self.seconds = round(update.seconds, 2)
        self.bytes_from = dict(update.bytes_from)
        sources: Counter[str] = Counter()
        paths: Counter[str] = Counter()
        for key, size in update.bytes_from.items():
            source, _, path = key.partition("/")
            sources[source] += size
            paths[path] += size
        self.sources, self.paths = dict(sources), dict(paths)


class Refusal(Struct, kw_only=True):
    """One attack, and what became of it."""

    attack: str
    reason: str
    """The token under which every device must refuse it."""
    devices: list[str] = field(default_factory=list)
    """Names of those that did."""
    detail: str = ""
    """In the words of the first of them."""


class HubDeath(Struct, kw_only=True):
    """How things stood when the hub was killed."""

    at: float
    """Seconds since the demo began."""
    exit_status: int
    metadata: list[str]
    """Devices that had version 2's metadata."""
    content: list[str]
    """Devices that had its content."""
    fetching: dict[str, float]
    """The other ones that were on, and the share that they had."""
    off: list[str]


class Result(Struct, kw_only=True):
    """All of it."""

    ok: bool = False
    seconds: float = 0.0
    devices: list[DeviceResult] = field(default_factory=list)
    origin_copies: float = 0.0
    """Of version 2. Bytes that devices had from hub and publisher, over the size of its variants."""
    origin_copies_first: float = 0.0
    """The same for version 1, with the hub there to the end and nobody's downlink narrowed."""
    origin_bytes: int = 0
    payload_bytes: int = 0
    """Of all variants of version 2."""
    refusals: list[Refusal] = field(default_factory=list)
    rollbacks: int = 0
    """Devices that undid version 3 and have version 2 again, byte for byte."""
    hub: HubDeath | None = None
    files_compared: int = 0
    """Installed files that were compared with published ones, each time counted."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each part of the demo."""
    problems: list[str] = field(default_factory=list)
    """What was not as it must be; empty when ``ok``."""

    def count_origin(self, payload_bytes: int) -> None:
        """Work out how often the origin sent version 2."""
        self.payload_bytes = payload_bytes
        self.origin_bytes = sum(
            size
            for device in self.devices
            for source, size in device.sources.items()
            if source in {"hub", "publisher"}
        )
        self.origin_copies = round(self.origin_bytes / payload_bytes, 2) if payload_bytes else 0.0

    def judge(self, version: str, reasons: Sequence[str]) -> None:
        """Add what is missing to the problems, and say whether all is well.

        Args:
            version: what every device must have in the end.
            reasons: every device must have refused something for each of these.
        """
        names = {device.name for device in self.devices}
        if not names:
            self.problems.append("no device was started")
        for device in self.devices:
            if device.version != version:
                self.problems.append(f"{device.name} has {device.version or 'nothing'} instead of {version}")
            if not device.files_compared:
                self.problems.append(f"what {device.name} has installed was not compared")
            if not device.rollback:
                self.problems.append(f"{device.name} did not roll back")
        for reason in reasons:
            refused = {name for each in self.refusals if each.reason == reason for name in each.devices}
            if missing := sorted(names - refused):
                self.problems.append(f"{reason} was not seen on {', '.join(missing)}")
        if self.hub is None:
            self.problems.append("the hub was not killed")
        self.ok = not self.problems


def render(result: Result, console: Console) -> None:
    """The table at the end."""
    sources = [
        key for key in _SOURCES if key != "publisher" or any("publisher" in d.sources for d in result.devices)
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("device", "board", "arch", "has"):
        table.add_column(column, no_wrap=True)
    for column in (*sources, *_PATHS, "sec"):
        table.add_column(column, justify="right", no_wrap=True)
    for device in result.devices:
        table.add_row(
            device.name + ("*" if device.was_off else ""),
            device.board,
            device.arch,
            device.version or "-",
            *(_megabytes(device.sources, key) for key in sources),
            *(_megabytes(device.paths, key) for key in _PATHS),
            f"{device.seconds:.1f}",
        )
    lines = [
        "How version 2.0 came: MB by source and by path, the protocol's own included; seconds from hearing of it.",
        "* switched off when it was published, back when the hub was dead",
        "",
        (
            f"origin: {result.origin_copies:.2f} copies of the payload = {result.origin_bytes / 1e6:.1f} MB that "
            f"devices had from hub and publisher / {result.payload_bytes / 1e6:.1f} MB of all variants; version 1.0: {result.origin_copies_first:.2f}"
        ),
        *(
            f"refused: {each.attack}: {each.reason}, by {len(each.devices)} of {len(result.devices)}"
            + (f" ({each.detail})" if each.detail else "")
            for each in result.refusals
        ),
        f"compared: {result.files_compared} installed files with the published ones, byte for byte",
        f"rolled back: version 3.0 on {result.rollbacks} of {len(result.devices)}",
    ]
    verdict = (
        Text(f"all is as it must be, in {result.seconds:.0f} s", style="bold green")
        if result.ok
        else Text(
            "\n".join(["NOT as it must be:", *(f"- {each}" for each in result.problems)]), style="bold red"
        )
    )
    console.print(Group(Text(), table, *map(Text, lines), verdict))


def _megabytes(sizes: Mapping[str, int], key: str) -> str:
    return f"{sizes[key] / 1e6:.1f}" if sizes.get(key) else "-"
