"""Whether a device can be reached from outside, by what those say who have tried: pure.

A device asks others to connect to one of its TCP ports at the address at which they see it (``core.wire.AskDial``).
Nobody's word is enough: a "yes" counts only together with the connection that the device has seen itself, and a hub's
word, or that of two devices, decides. So a member that lies can neither have a device announce what nobody
can reach, nor have it stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

AGREEING_MIN: Final = 2
"""Devices that are no hubs which must say the same to be believed."""
WEB_PORTS: Final = frozenset({80, 443})
FIRST_FREE_PORT: Final = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What one device found."""

    hub: bool
    reached: bool
    """It says that it connected."""
    seen: bool
    """Its connection arrived, with the proof that only it was given."""
    addr: str = ""
    """Where it connected to, ``IP:PORT``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the answers come to."""

    addr: str | None
    """Where we can be reached from outside; None: we cannot."""


def judge(answers: Collection[Answer]) -> Verdict | None:
    """What to believe; None when nothing is known now that was not known before.

    Args:
        answers: of one round, at most one of each device.
    """
    yes = Counter({each.addr: 0 for each in answers})
    no = 0
    for each in answers:
        weight = AGREEING_MIN if each.hub else 1
        if each.reached and each.seen and each.addr:
            yes[each.addr] += weight
        elif not each.reached:
            no += weight
        # Who says that it connected, and did not, has no say.
    addr, most = max(yes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    if most >= AGREEING_MIN and most >= no:
        return Verdict(addr)
    return Verdict(None) if no >= AGREEING_MIN else None


def may_be_dialled(port: int) -> bool:
    """Whether one connects to this port because a member asks for it: no service of the system but the web's."""
    return port in WEB_PORTS or FIRST_FREE_PORT <= port <= 0xFFFF
