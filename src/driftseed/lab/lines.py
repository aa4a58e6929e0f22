"""What a cable does to packets: rate, delay, loss.

Rates are the kernel's ``tbf`` (tc-tbf(8)). Delay and loss would be ``netem``'s, which many kernels lack; so a
process of the lab's own carries the packets between two TUN interfaces, and does both the same way everywhere.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from driftseed.core.errors import LabFailed
from driftseed.lab.netns import Namespace

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_QUEUE_MS: Final = 100
"""Milliseconds of packets that wait for a slow line before some are dropped."""
_BURST_S: Final = 0.004
"""Seconds' worth of a rate that may pass at once: a kernel's tick."""
_BURST_BYTES_MIN: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A way to the internet, as its owner would describe it.

    Args:
        up: megabits per second to the internet; None: as fast as the machine.
        down: megabits per second from it.
        delay_ms: milliseconds each way.
        loss_percent: packets of a hundred that get lost, each way.
    """

    up: float | None = None
    down: float | None = None
    delay_ms: float = 0.0
    loss_percent: float = 0.0

    @property
    def needs_line(self) -> bool:
        """It takes a process to be like this."""
        return self.delay_ms > 0 or self.loss_percent > 0


def shape(namespace: Namespace, interface: str, megabits: float | None) -> None:
    """Bound what an interface sends."""
    if megabits is None:
        return
    burst = max(int(megabits * 1e6 / 8 * _BURST_S), _BURST_BYTES_MIN)
    namespace.tc(
        f"qdisc replace dev {interface} root tbf rate {int(megabits * 1000)}kbit burst {burst} "
        f"latency {_QUEUE_MS}ms"
    )


class DelayLine:
    """A process that carries packets between two namespaces, late and not all of them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def connect(
        cls, one: Namespace, one_name: str, other: Namespace, other_name: str, line: Shape
    ) -> DelayLine:
        """Make an interface in either namespace, and carry packets between them.

        Raises:
            LabFailed: this machine has no TUN device, or it is not ours to use.
        """
        ends = (_tun(one, one_name), _tun(other, other_name))
        arguments = [str(ends[0]), str(ends[1]), str(line.delay_ms), str(line.loss_percent)]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                [sys.executable, "-m", "driftseed.lab.delay", *arguments], pass_fds=ends
            )
        finally:
            for end in ends:
                os.close(end)
        return cls(process)

    def close(self) -> None:
        """End it; the interfaces go with it."""
        self._process.kill()
        self._process.wait()


def _tun(namespace: Namespace, name: str) -> int:
    """A TUN interface (Documentation/networking/tuntap.rst): one descriptor, one IP packet each read and write."""

    def make() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    try:
        return namespace.enter(make)
    except LabFailed as error:
        raise LabFailed(
            f"no line with delay or loss can be made: {error.message}",
            hint="it takes /dev/net/tun, readable and writable: modprobe tun",
        ) from None
