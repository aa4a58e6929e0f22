"""One network namespace: a machine of the laboratory, as far as its network is concerned.

The namespaces live in the laboratory's own mount and PID namespace (``lab.sandbox``), so that the kernel takes
everything away when the laboratory ends, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from driftseed.core.errors import LabFailed
from driftseed.lab import tools

RUN: Final = Path("/run/netns")
"""Where ``ip netns`` keeps them."""
_CLONE_NEWNET: Final = 0x40000000
"""From <linux/sched.h>; Python has ``os.setns`` from 3.12 on."""
_libc: Final = ctypes.CDLL(None, use_errno=True)

_Result = TypeVar("_Result")


class Namespace:
    """A network namespace that exists. Make one with ``create``.

    Args:
        name: as ``ip netns`` knows it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = RUN / name

    @classmethod
    def create(cls, name: str) -> Namespace:
        """Make a namespace with nothing but a loopback interface in it."""
        tools.run(["ip", "netns", "add", name])
        namespace = cls(name)
        namespace.ip("link set lo up")
        return namespace

    def ip(self, *commands: str) -> None:
        """Run commands of ``ip`` in it, such as ``link set lan up``, one after the other."""
        tools.run(["ip", "-n", self.name, "-batch", "-"], stdin="\n".join(commands) + "\n")

    def tc(self, *commands: str) -> None:
        """Run commands of ``tc`` in it."""
        tools.run(["tc", "-n", self.name, "-batch", "-"], stdin="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        """Load packet filter rules."""
        tools.run(self.command(["nft", "-f", "-"]), stdin=rules)

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to execute so that ``argv`` runs in it."""
        return [tools.find("nsenter") or "nsenter", f"--net={self.path}", "--", *argv]

    def sysctl(self, key: str, value: int) -> None:
        """Set a switch of its network, such as ``ipv4/ip_forward``."""

        def write() -> None:
            Path("/proc/sys/net", key).write_text(str(value), encoding="ascii")

        self.enter(write)

    def udp_socket(self, ip: str, port: int = 0) -> socket.socket:
        """A non-blocking UDP socket of this namespace: it stays in it wherever it is used."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
            try:
                made.bind((ip, port))
            except OSError:
                made.close()
                raise
            made.setblocking(False)
            return made

        return self.enter(make)

    def enter(self, work: Callable[[], _Result]) -> _Result:
        """Do something in it, in a thread that ends afterwards: only threads can be in a namespace.

        Raises:
            LabFailed: the namespace cannot be entered, or the system refuses what was to be done.
        """
        results: list[_Result] = []
        failures: list[OSError] = []

        def inside() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                        number = ctypes.get_errno()
                        raise OSError(number, os.strerror(number))
                finally:
                    os.close(descriptor)
                results.append(work())
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=inside, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failures:
            raise LabFailed(f"in the namespace {self.name}: {failures[0]}")
        return results[0]

    def bytes_of(self, interface: str) -> tuple[int, int]:
        """Bytes that an interface has sent and received."""
        answer = tools.run(["ip", "-n", self.name, "-s", "-j", "link", "show", "dev", interface])
        counted: Any = json.loads(answer)[0]["stats64"]
        return int(counted["tx"]["bytes"]), int(counted["rx"]["bytes"])
