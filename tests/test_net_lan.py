"""Devices find and update each other on a LAN with no internet, no hub and no name service."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from driftseed.core import lan, limits
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.net.lan import Interface, LanDiscovery, usable
from support_fleet import until

NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--"]
FLEET = FleetId("f1" * 32)


def interface(name: str, address: str, index: int = 2) -> Interface:
    return Interface(name, index, ipaddress.ip_interface(address))


ALL = [
    interface("lo", "127.0.0.1/8", 1),
    interface("eth0", "192.168.7.2/24"),
    interface("eth0", "fe80::1/64"),
    interface("wlan0", "10.1.1.9/16", 3),
]


@pytest.mark.parametrize(
    ("names", "bound", "expected"),
    [
        ([], ["0.0.0.0:1", "[::]:2"], ["192.168.7.2", "fe80::1", "10.1.1.9"]),
        ([], ["0.0.0.0:1"], ["192.168.7.2", "10.1.1.9"]),
        (["wlan0"], ["0.0.0.0:1"], ["10.1.1.9"]),
        (["192.168.7.2"], ["0.0.0.0:1"], ["192.168.7.2"]),
        ([], ["10.1.1.9:1"], ["10.1.1.9"]),
        ([], ["127.0.0.1:1"], []),
        (["lo"], ["127.0.0.1:1"], ["127.0.0.1"]),
    ],
)
def test_a_device_is_announced_only_where_it_can_be_reached(
    names: list[str], bound: list[str], expected: list[str]
) -> None:
    assert [str(each.address.ip) for each in usable(ALL, names, bound)] == expected


class Heard:
    """What a discovery hands on."""

    def __init__(self, device: str, port: int) -> None:
        self.found: dict[str, NodeAddress] = {}
        self.drops: Counter[str] = Counter()
        self.news = asyncio.Event()
        self.discovery = LanDiscovery(
            DeviceId(device),
            FLEET,
            bound=lambda: [f"127.0.0.1:{port}"],
            found=self._found,
            moved=lambda: None,
            dropped=self._dropped,
            interfaces=["lo"],
        )

    def _found(self, address: NodeAddress) -> None:
        self.found[address.device] = address
        self.news.set()

    def _dropped(self, reason: str, device: str, detail: str) -> None:
        self.drops[reason] += 1
        self.news.set()


async def until_heard(heard: Heard, what: str, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while what not in heard.found and not heard.drops[what]:
            heard.news.clear()
            await heard.news.wait()


async def test_two_on_one_network_hear_of_each_other_and_close_clean() -> None:
    one, two = Heard("aa" * 32, 4001), Heard("bb" * 32, 4002)
    tasks = [asyncio.create_task(each.discovery.run()) for each in (one, two)]
    try:
        await until_heard(one, "bb" * 32)
        await until_heard(two, "aa" * 32)
        assert one.found["bb" * 32].addrs == ["127.0.0.1:4002"]
        assert one.discovery.interfaces == ("lo",)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not one.discovery.interfaces


def dns_name(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".") if part) + b"\0"


def pointer(instance: str) -> bytes:
    """An mDNS answer: there is a service instance of this name."""
    data = dns_name(instance)
    head = bytes.fromhex("000084000000000100000000")
    return (
        head + dns_name(lan.SERVICE) + bytes.fromhex("000c000100001194") + len(data).to_bytes(2, "big") + data
    )


async def test_a_flood_of_false_announcements_is_bounded_and_counted() -> None:
    """Thousands of made-up devices: a few are asked for their details, the rest counted; an honest one is heard."""
    heard = Heard("aa" * 32, 4001)
    task = asyncio.create_task(heard.discovery.run())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
        liar.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        try:
            await until(lambda: bool(heard.discovery.interfaces), "discovery has begun")
            number = 0
            async with asyncio.timeout(20):
                while not heard.drops["lan-flood"]:
                    for _ in range(50):
                        number += 1
                        liar.sendto(pointer(f"{number:032x}.{lan.SERVICE}"), ("224.0.0.251", 5353))
                    await asyncio.sleep(0.02)
            assert len(heard.discovery._resolving) <= limits.LAN_RESOLVING_MAX
            assert heard.found == {}
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def can_make_networks() -> bool:
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "ip")):
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.root
def test_two_agents_on_one_cable_update_each_other_with_nothing_else_there() -> None:
    if not can_make_networks():
        pytest.skip("this machine lets us make no network namespace")
    script = Path(__file__).with_name("support_lan.py")
    run = subprocess.run(
        [*NAMESPACE, sys.executable, str(script)], capture_output=True, text=True, timeout=150, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(run.stdout)
    assert result["state"] == "succeeded", run.stderr[-8000:]
    assert result["installed"] == [True]
    assert set(result["bytes_from"]) == {"peer/lan"}
    assert [(peer["role"], peer["path"]) for peer in result["peers"]] == [("agent", "lan")]
    assert result["exit_codes"] == [0, 0]
